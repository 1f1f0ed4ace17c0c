// What the reader chose to replay: the section of the replay sets it, the view of the tokens follows it.

// A choice: { run, page, label, kind: "grid", low, high } with places in the grid of the page of data that it was made
// with, or { run, page, label, kind: "rule", key }.
export function replayChoice() {
  const followers = new Set();
  let chosen = null, isShown = false;
  const tell = () => { for (const follower of [...followers]) follower(); };
  return {
    // null where what the run itself decided is shown; a choice is of one run.
    of: run => (chosen && chosen.run === run ? chosen : null),
    set(choice) { chosen = choice; if (!choice) isShown = false; tell(); },
    // Whether the tokens are to be marked by it.
    get isShown() { return isShown; },
    show(shown) { isShown = shown; tell(); },
    follow(follower) { followers.add(follower); return () => followers.delete(follower); },
  };
}
