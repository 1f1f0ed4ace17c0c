// Building the page: every text goes in as text, so nothing that a model wrote can become markup.

export function el(tag, classes, ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

export function svgEl(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// A tooltip inside `host`, which must be positioned.
export function makeTip(host) {
  const tip = el("div", "tip");
  tip.hidden = true;
  host.append(tip);
  return {
    node: tip,
    show(x, y, ...content) {
      tip.replaceChildren(...content);
      tip.hidden = false;
      const room = host.clientWidth - tip.offsetWidth - 4;
      const beside = x + 14 > room ? x - tip.offsetWidth - 14 : x + 14;
      tip.style.left = Math.max(4, Math.min(beside, room)) + "px";
      tip.style.top = Math.max(0, y) + "px";
    },
    hide() { tip.hidden = true; },
  };
}

export function keyed(classes, text) {
  const swatch = el("i");
  return el("span", classes, swatch, text);
}
