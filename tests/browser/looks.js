// What the tests ask a page about its looks: an object of functions, evaluated in the page. Each names what is wrong.
({
  // Text that is cut off: by a box that hides what is wider, or since it lies beyond the window or its figure. What can
  // be scrolled to is not cut off.
  cutOff() {
    const scrolls = node => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
    const cut = [];
    for (const node of document.querySelectorAll("body *")) {
      if (!(node instanceof HTMLElement) || node.tagName === "SELECT" || !node.checkVisibility()) continue;
      const style = getComputedStyle(node), name = `${node.tagName}.${node.className}`;
      const hides = ["hidden", "clip"].includes(style.overflowX) && style.textOverflow !== "ellipsis";
      if (hides && node.clientWidth > 1 && node.scrollWidth > node.clientWidth + 1) cut.push(`hidden in ${name}`);
      if (!this.hasText(node) && !["INPUT", "BUTTON"].includes(node.tagName)) continue;
      let holder = node;
      while (holder && !scrolls(holder)) holder = holder.parentElement;
      const place = node.getBoundingClientRect(), isBeyond = place.right > innerWidth + 1 || place.left < -1;
      if (!holder && place.width > 1 && isBeyond) cut.push(`beyond the window: ${name} ${node.textContent.slice(0, 40)}`);
    }
    for (const text of document.querySelectorAll("svg text")) {
      const place = text.getBoundingClientRect(), frame = text.ownerSVGElement.getBoundingClientRect();
      const isBeyond = place.left < frame.left - 2 || place.right > frame.right + 2;
      if (text.checkVisibility() && place.width && isBeyond) cut.push(`beyond its figure: ${text.textContent}`);
    }
    return cut;
  },

  // Text whose contrast with what lies behind it is less than `least` (as WCAG counts it); each pair of colours once.
  // What is switched off, or shown faded as not taking part, is left out.
  pale(least) {
    const pale = new Map();
    for (const node of document.querySelectorAll("body *")) {
      if (!(node instanceof HTMLElement) || !this.hasText(node)) continue;
      if (node.matches(":disabled, .zero, .zero *, .absent *, option, i")) continue;
      if (!node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
      const ground = this.behind(node), ink = this.over(this.parse(getComputedStyle(node).color), ground);
      const [high, low] = [this.light(ink), this.light(ground)].sort((a, b) => b - a), contrast = (high + .05) / (low + .05);
      const name = `${node.tagName}.${node.className}: ${node.textContent.slice(0, 30)}`;
      if (contrast < least) pale.set(`${ink.map(Math.round)} on ${ground.map(Math.round)}`, `${name}, ${contrast.toFixed(2)}`);
    }
    return [...pale].map(([colours, where]) => `${where} (${colours})`);
  },

  hasText: node => [...node.childNodes].some(one => one.nodeType === Node.TEXT_NODE && one.data.trim()),

  // A colour is painted and read back, so that every way of writing one is understood.
  parse(colour) {
    this.brush ||= Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    this.brush.clearRect(0, 0, 1, 1);
    this.brush.fillStyle = colour;
    this.brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = this.brush.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  },
  over: ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1],
  light(colour) {
    const [r, g, b] = colour.map(one => (one / 255 <= .04045 ? one / 255 / 12.92 : ((one / 255 + .055) / 1.055) ** 2.4));
    return .2126 * r + .7152 * g + .0722 * b;
  },
  behind(node) {
    const layers = [];
    for (let one = node; one && (layers.length === 0 || layers[layers.length - 1][3] < 1); one = one.parentElement) {
      layers.push(this.parse(getComputedStyle(one).backgroundColor));
    }
    return layers.reduceRight((below, layer) => this.over(layer, below), this.parse("Canvas"));
  },

  // Controls without a name.
  nameless() {
    const label = node => [...(node.labels || [])].flatMap(one => [...one.childNodes]).filter(part => part !== node);
    return [...document.querySelectorAll("button, select, input, a[href], [tabindex='0'], [role=slider]")].filter(node => {
      const given = ["aria-label", "aria-labelledby", "title"].some(name => node.getAttribute(name));
      const isSaid = ["BUTTON", "A"].includes(node.tagName) && node.textContent.trim();
      return !given && !isSaid && !label(node).map(part => part.textContent).join("").trim();
    }).map(node => node.outerHTML.slice(0, 120));
  },

  // Pictures without a name, but those whose name is that of the control they hold.
  unnamedPictures() {
    return [...document.querySelectorAll("svg:not([aria-hidden=true], [aria-label])")]
      .filter(svg => !svg.querySelector("[role][aria-label], [role][aria-labelledby]"))
      .map(svg => svg.parentElement.outerHTML.slice(0, 120));
  },

  headings() {
    return [...document.querySelectorAll("h1, h2, h3, h4")].filter(one => one.checkVisibility()).map(one => Number(one.tagName[1]));
  },
  idsGivenTwice() {
    const ids = [...document.querySelectorAll("[id]")].map(one => one.id);
    return ids.filter((id, place) => ids.indexOf(id) !== place);
  },

  // What moves by itself, or takes its time.
  moving() {
    return [...document.querySelectorAll("*")].filter(one => {
      const style = getComputedStyle(one);
      return `${style.transitionDuration},${style.animationDuration}`.split(",").some(time => parseFloat(time) > .01);
    }).map(one => `${one.tagName}.${one.className}`);
  },

  // What has the focus, marked as reached: { number, what, look, isSeen }; null where nothing has it.
  focused() {
    const node = document.activeElement;
    if (!node || node === document.body) return null;
    node.dataset.reached ||= String(document.querySelectorAll("[data-reached]").length + 1);
    const place = node.getBoundingClientRect(), name = node.getAttribute("aria-label") || node.textContent;
    const isSeen = place.bottom > 0 && place.top < innerHeight && place.width > 0 && place.height > 0;
    const what = `${node.tagName}.${node.getAttribute("class")} ${name.slice(0, 40)}`;
    return { number: node.dataset.reached, what, look: this.look(node), isSeen };
  },

  // Of each element that was reached, what it looks like now.
  looks() {
    return Object.fromEntries([...document.querySelectorAll("[data-reached]")].map(node => [node.dataset.reached, this.look(node)]));
  },
  look(node) {
    return [node, ...node.querySelectorAll("*")].slice(0, 300).flatMap(one => {
      const style = getComputedStyle(one), outline = style.outlineStyle === "none" ? "" : style.outlineWidth + style.outlineColor;
      return [outline, style.boxShadow, style.borderColor, style.backgroundColor, style.stroke];
    }).join("|");
  },

  // Controls that can be used and were not reached; of a group of radio buttons one is enough.
  unreached() {
    const all = "main button, main select, main input, main [tabindex='0'], #bar button, .theme";
    const isUsable = node => node.checkVisibility({ visibilityProperty: true }) && !node.disabled && node.tabIndex >= 0;
    const isGrouped = node => node.type === "radio" && document.querySelector(`[name="${node.name}"][data-reached]`);
    return [...document.querySelectorAll(all)]
      .filter(node => isUsable(node) && !node.closest("details:not([open])") && !node.dataset.reached && !isGrouped(node))
      .map(node => node.outerHTML.slice(0, 120));
  },
})
