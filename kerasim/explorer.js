"use strict";
(() => {
const REACH = 20; // pixels from a tap or click to the point that it selects
const PAGE = 60; // images or labels that are added to a list at once
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const touch = matchMedia("(any-pointer: coarse)").matches;

function unpack([type, text]) {
  const decoded = atob(text), bytes = new Uint8Array(decoded.length);
  for (let n = 0; n < bytes.length; n++) bytes[n] = decoded.charCodeAt(n);
  return new { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array }[type](bytes.buffer);
}

const colorings = data.colorings.map((one) => ({ ...one, classes: unpack(one.classes) }));
const labels = data.labeled ? colorings[0] : null;
const nearest = data.nearest.map(({ metric, k, rows, distances }) => ({
  metric, k, rows: unpack(rows), distances: distances && { ...distances, codes: unpack(distances.codes) },
}));
const sizes = unpack(data.sizes);
const state = { coloring: 0, shown: new Set(), hits: null, selected: null, metric: 0, hovered: null, images: true };

// What an image is named.

const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text; // never HTML: labels may hold anything
  if (name) element.className = name;
  if (tag === "button") element.type = "button";
  return element;
};
const label = (n) => (labels ? labels.names[labels.classes[n]] : "");
const file = (n) => (data.files ? data.files[n] : "");
const named = (n) => label(n) || file(n).split("/").pop() || `image ${n}`;
const described = (n) => [label(n), file(n) || `image ${n}`].filter(Boolean).join(", ");
const details = (n) => [file(n) || `image ${n}`].filter((text) => text !== named(n)).map((text) => make("div", text));
const counted = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
const isShown = (n) => !state.shown.size || state.shown.has(colorings[state.coloring].classes[n]);

function link(n) {
  if (data.folder === null || !file(n)) return null;
  try {
    return `./${`${data.folder}/${file(n)}`.split("/").map(encodeURIComponent).join("/")}`;
  } catch {
    return null; // a name with bytes that are no text
  }
}

function relation(n, other) {
  if (!labels) return "";
  const [one, two] = [labels.classes[n], labels.classes[other]];
  if (one === labels.missing || two === labels.missing) return "";
  return one === two ? "same" : "other";
}

function distance({ distances }, position) {
  if (!distances) return null;
  const code = distances.codes[position];
  const value = code ? Math.exp(distances.low + (code - 1) * distances.step) : 0;
  return value >= 1e-4 && value < 1e5 ? `${Number(value.toPrecision(3))}` : value.toPrecision(3).replace(/^0\.00$/, "0");
}

// Images, cut out of the sheets. A sheet is decoded when one of its images is needed.

const sheets = [];

function sheet(n) {
  if (!sheets[n]) {
    sheets[n] = new Image();
    sheets[n].src = document.getElementsByClassName("sheet")[n].textContent;
    sheets[n].addEventListener("load", repaint);
  }
  return sheets[n];
}

function part(n) {
  const place = n % data.columns ** 2, pair = sizes.length > 2 ? 2 * n : 0;
  return {
    source: sheet(Math.floor(n / data.columns ** 2)),
    left: (place % data.columns) * data.side, top: Math.floor(place / data.columns) * data.side,
    wide: sizes[pair], high: sizes[pair + 1],
  };
}

function tile(n, side) {
  const { source, left, top, wide, high } = part(n), scale = side / Math.max(wide, high);
  const canvas = make("canvas", undefined, Math.max(wide, high) <= 16 ? "tile pixels" : "tile");
  [canvas.width, canvas.height] = [wide, high];
  canvas.style.cssText = `width:${Math.max(1, wide * scale)}px;height:${Math.max(1, high * scale)}px`;
  canvas.setAttribute("aria-hidden", "true");
  const draw = () => {
    canvas.getContext("2d").drawImage(source, left, top, wide, high, 0, 0, wide, high);
    canvas.dataset.drawn = "yes";
  };
  if (source.complete && source.naturalWidth) draw();
  else source.addEventListener("load", draw, { once: true });
  return canvas;
}

// Lists of images.

function pick(n, notes = [], kind = "") {
  const button = make("button", undefined, kind), frame = make("span", undefined, "frame");
  const relations = { same: "the same label", other: "another label" };
  button.dataset.n = n;
  button.title = [label(n), file(n)].filter(Boolean).join("\n");
  button.setAttribute("aria-label", [...notes, described(n), relations[kind]].filter(Boolean).join(", "));
  frame.append(tile(n, 76));
  button.append(frame, ...(notes.length ? [make("span", notes.join(" · "), "number")] : []), make("span", named(n), "name"));
  button.addEventListener("click", () => choose(n));
  for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => point(n));
  for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => point(null));
  return button;
}

// Fills a list with its first entries, and a button for more.
function fill(list, rows, entry, start = 0) {
  const added = [...rows.slice(start, start + PAGE)].map(entry);
  if (start === 0) list.replaceChildren(...added);
  else list.append(...added);
  const rest = rows.length - start - added.length;
  if (rest > 0) {
    const more = make("button", `Show ${Math.min(PAGE, rest)} more of ${rest.toLocaleString("en")}`, "more");
    const holder = list.tagName === "UL" ? make("li") : more;
    if (holder !== more) holder.append(more);
    more.addEventListener("click", () => {
      holder.remove();
      const first = list.children.length;
      fill(list, rows, entry, start + PAGE);
      const next = list.children[first];
      (next.tagName === "LI" ? next.firstChild : next).focus();
    });
    list.append(holder);
  }
}

// Highlights an image on the map and wherever it is listed.
function point(n) {
  if (state.hovered === n) return;
  state.hovered = n;
  for (const button of document.querySelectorAll("aside .row > button[data-n]"))
    button.classList.toggle("near", button.dataset.n === `${n}`);
  repaint();
}

function choose(n) {
  state.selected = n;
  const hash = n === null ? "" : `#image-${n}`;
  if (location.hash !== hash) location.hash = hash;
  const inside = document.activeElement.closest("aside") !== null;
  showSelected();
  showNeighbors();
  repaint();
  at("status").textContent = n === null ? "Nothing is selected" : `Selected: ${described(n)}`;
  if (n === null) return;
  if (inside && !document.activeElement.closest("aside")) at("chosen").querySelector("button").focus();
  at("selected").scrollIntoView({ block: "nearest" });
  if (at("chosen").getBoundingClientRect().bottom > at("selected").parentNode.getBoundingClientRect().bottom - 60)
    at("selected").scrollIntoView({ block: "start" });
}

function step(by) {
  let n = state.selected === null ? (by > 0 ? -1 : 0) : state.selected;
  for (let tried = 0; tried < data.count; tried++) {
    n = (n + by + data.count) % data.count;
    if (isShown(n)) return reveal(n);
  }
}

// Selects an image, and moves the map if the image is outside it.
function reveal(n) {
  choose(n);
  if (!isInView(n)) {
    const [across, up] = [plot.x_range, plot.y_range].map((range) => (range.end - range.start) / 2);
    look(source.data.x[n], source.data.y[n], across, up);
  }
}

function showSelected() {
  const n = state.selected;
  if (n === null) {
    const searched = at("search").hidden ? "" : ", or search";
    at("chosen").replaceChildren(`${touch ? "Tap or click" : "Click"} a point${searched}.`);
    return;
  }
  const about = make("div"), steps = make("div", undefined, "steps"), enlarge = make("button", undefined, "enlarge");
  for (const [text, by] of [["Previous", -1], ["Next", 1]]) {
    const button = make("button", text);
    button.setAttribute("aria-label", `${text} image`);
    button.addEventListener("click", () => {
      step(by);
      at("chosen").querySelector(`[aria-label="${text} image"]`).focus();
    });
    steps.append(button);
  }
  const clear = make("button", "Clear");
  clear.setAttribute("aria-label", "Clear the selection");
  clear.addEventListener("click", () => { choose(null); at("map").focus(); });
  steps.append(clear);
  enlarge.setAttribute("aria-label", `Enlarge ${described(n)}`);
  enlarge.title = "Enlarge";
  enlarge.append(tile(n, 96));
  enlarge.addEventListener("click", () => showLarge(n));
  about.append(make("strong", named(n)), ...details(n));
  for (const one of colorings.slice(labels ? 1 : 0)) about.append(make("div", `${one.name}: ${one.names[one.classes[n]]}`));
  about.append(steps);
  at("chosen").replaceChildren(enlarge, about);
}

function showNeighbors() {
  const n = state.selected;
  if (n === null || !nearest.length) return at("neighbors").replaceChildren();
  const marked = ({ metric }) => (metric === data.metric ? `${metric} ★` : metric);
  const tabs = make("div"), chosen = nearest[state.metric];
  tabs.setAttribute("role", "tablist");
  tabs.setAttribute("aria-label", "Nearest images by metric");
  tabs.append(...nearest.map((one, position) => {
    const tab = make("button", marked(one));
    tab.id = `tab-${one.metric}`;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-selected", position === state.metric);
    tab.setAttribute("aria-controls", "nearest");
    tab.tabIndex = position === state.metric ? 0 : -1;
    tab.addEventListener("click", () => showMetric(position));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) showMetric((position + by + nearest.length) % nearest.length);
    });
    return tab;
  }));
  const section = make("section"), row = make("div", undefined, "row"), notes = [];
  section.id = "nearest";
  section.dataset.metric = chosen.metric;
  section.setAttribute("role", "tabpanel");
  section.setAttribute("aria-labelledby", `tab-${chosen.metric}`);
  const start = n * chosen.k;
  row.append(...Array.from(chosen.rows.subarray(start, start + chosen.k), (other, rank) => {
    const far = distance(chosen, start + rank);
    return pick(other, [`${rank + 1}`, ...(far === null ? [] : [far])], relation(n, other));
  }));
  if (data.metric) notes.push("★ the metric of the search.");
  notes.push(`Below each image: its rank${chosen.distances ? " and distance" : ""}.`);
  if (labels) notes.push("Frame: solid green for the same label, dashed red for another one.");
  section.append(row, make("p", notes.join(" ")));
  at("neighbors").replaceChildren(make("h2", "Nearest images"), tabs, section);
}

function showMetric(position) {
  state.metric = position;
  showNeighbors();
  at(`tab-${nearest[position].metric}`).focus();
  repaint();
}

function showLarge(n) {
  const side = Math.min(0.7 * innerHeight, 0.86 * innerWidth, 640), close = make("button", "Close");
  const canvas = tile(n, side), about = make("div"), address = link(n);
  close.addEventListener("click", () => at("large").close());
  about.append(make("strong", named(n)), ...details(n));
  if (address) {
    const anchor = make("a", "Open the file"), image = new Image();
    anchor.href = address;
    anchor.target = "_blank";
    anchor.rel = "noopener";
    about.append(anchor, " ");
    image.alt = described(n);
    image.addEventListener("load", () => canvas.replaceWith(image));
    image.src = address;
  }
  about.append(close);
  canvas.setAttribute("role", "img");
  canvas.removeAttribute("aria-hidden");
  canvas.setAttribute("aria-label", described(n));
  at("large").replaceChildren(canvas, about);
  at("large").showModal();
}

// Search and legend.

const lower = (text) => text.toLowerCase();
const labelTexts = labels ? labels.names.map(lower) : [];
const fileTexts = data.files ? data.files.map(lower) : null;

function search() {
  const words = lower(at("search").value).split(/\s+/).filter(Boolean);
  at("card").hidden = true;
  at("found").hidden = !words.length;
  state.hits = null;
  if (words.length) {
    state.hits = [];
    for (let n = 0; n < data.count; n++) {
      const text = `${labels ? labelTexts[labels.classes[n]] : ""}\n${fileTexts ? fileTexts[n] : ""}`;
      if (isShown(n) && words.every((word) => text.includes(word))) state.hits.push(n);
    }
    const heading = `${state.hits.length.toLocaleString("en")} found`;
    at("found").querySelector("h2").textContent = heading;
    at("status").textContent = heading;
    fill(at("found").querySelector(".row"), state.hits, (n) => pick(n));
    at("found").scrollIntoView({ block: "nearest" });
  }
  repaint();
}

function showLegend() {
  const one = colorings[state.coloring], counts = new Uint32Array(one.names.length);
  for (const each of one.classes) counts[each]++;
  at("legend").querySelector("summary").textContent =
    `${one.name[0].toUpperCase()}${one.name.slice(1)}: ${counted(one.names.length, "value")}`;
  at("all").hidden = true;
  fill(at("legend").querySelector("ul"), [...one.names.keys()], (n) => {
    const item = make("li"), button = make("button"), mark = make("span", data.marks[markerOf(one, n)]);
    mark.style.color = colorOf(one, n);
    mark.setAttribute("aria-hidden", "true");
    button.setAttribute("aria-pressed", state.shown.has(n));
    button.setAttribute("aria-label", `Show only ${one.names[n]}, ${counted(counts[n], "image")}`);
    button.append(mark, make("span", one.names[n]), make("span", counts[n].toLocaleString("en"), "number"));
    button.addEventListener("click", () => {
      if (!state.shown.delete(n)) state.shown.add(n);
      button.setAttribute("aria-pressed", state.shown.has(n));
      showCount();
    });
    item.append(button);
    return item;
  });
}

function showCount() {
  let shown = data.count;
  if (state.shown.size) shown = colorings[state.coloring].classes.reduce((sum, each) => sum + state.shown.has(each), 0);
  const all = counted(data.count, "image");
  at("count").textContent = shown < data.count ? `${shown.toLocaleString("en")} of ${all} shown` : all;
  at("all").hidden = !state.shown.size;
  drawPoints();
  if (state.hits) search();
}

function showAll() {
  state.shown.clear();
  for (const button of at("legend").querySelectorAll("[aria-pressed]")) button.setAttribute("aria-pressed", "false");
  showCount();
}

const colorOf = ({ colors }, n) => colors[n % colors.length];
const markerOf = ({ colors }, n) => (n + Math.floor(n / colors.length)) % data.marks.length;

// The map: bokeh draws the points, moves and zooms; the canvas above it shows images and marks.

let source, plot, view, points, home, wanted = false, drawn = [];

function drawPoints() {
  if (!plot) return;
  const one = colorings[state.coloring], count = data.count, faint = 0.06;
  const alpha = Math.min(0.9, Math.max(0.3, 40 / Math.sqrt(count)));
  if (one) {
    const classes = Array.from(one.classes);
    const palette = one.names.map((_, n) => colorOf(one, n));
    const markers = one.names.map((_, n) => data.markers[markerOf(one, n)]);
    const alphas = one.names.map((_, n) => (!state.shown.size || state.shown.has(n) ? alpha : faint));
    source.data = {
      ...source.data, color: classes.map((n) => palette[n]), marker: classes.map((n) => markers[n]),
      alpha: classes.map((n) => alphas[n]),
    };
    points.glyph.setv({ fill_color: { field: "color" }, marker: { field: "marker" }, fill_alpha: { field: "alpha" } });
  } else {
    points.glyph.setv({ fill_color: { value: "#0077BB" }, fill_alpha: { value: alpha } });
  }
  points.visible = true;
  repaint();
}

// Returns how data become pixels of the map: x -> left + x * across, y -> top + y * down.
function transform() {
  const { left, top, width: wide, height: high } = view.frame.bbox;
  const { x_range: x, y_range: y } = plot;
  const across = wide / (x.end - x.start), down = -high / (y.end - y.start);
  return { left, top, wide, high, across, down, x0: x.start, y0: y.end };
}

function place(frame, n) {
  const { data: { x, y } } = source;
  return [frame.left + (x[n] - frame.x0) * frame.across, frame.top + (y[n] - frame.y0) * frame.down];
}

function isInView(n) {
  const { x_range: { start, end }, y_range: { start: bottom, end: top } } = plot, { x, y } = source.data;
  return x[n] >= start && x[n] <= end && y[n] >= bottom && y[n] <= top;
}

// Returns the image at a position of the map: one that is drawn there, or the nearest point.
function under(x, y, reach = REACH) {
  const box = drawn.find(({ left, top, wide, high }) => x >= left && y >= top && x <= left + wide && y <= top + high);
  if (box) return box.n;
  const frame = transform();
  let best = null, least = reach ** 2;
  for (let n = 0; n < data.count; n++) {
    const [left, top] = place(frame, n), far = (left - x) ** 2 + (top - y) ** 2;
    if (far <= least && isShown(n)) [best, least] = [n, far];
  }
  return best;
}

function repaint() {
  if (!plot || wanted) return;
  wanted = true;
  requestAnimationFrame(() => { wanted = false; paint(); });
}

function paint() {
  const canvas = at("overlay"), map = at("map"), ratio = devicePixelRatio || 1;
  const [wide, high] = [map.clientWidth, map.clientHeight];
  if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
    [canvas.width, canvas.height] = [Math.round(wide * ratio), Math.round(high * ratio)];
    canvas.style.cssText = `width:${wide}px;height:${high}px`;
  }
  const pen = canvas.getContext("2d"), frame = transform();
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, wide, high);
  drawn = state.images ? imagesIn(frame) : [];
  for (const box of drawn) paintImage(pen, box);
  paintMarks(pen, frame);
}

// Returns which images are drawn on the map and where: those in view, if they are few, without
// overlap. The first ones have precedence, so that an image stays while the map moves.
function imagesIn(frame) {
  const seen = [], most = (frame.wide * frame.high) / 1500;
  for (let n = 0; n < data.count; n++) {
    const [x, y] = place(frame, n);
    if (x < frame.left || y < frame.top || x > frame.left + frame.wide || y > frame.top + frame.high || !isShown(n)) continue;
    if (seen.length >= most) return [];
    seen.push([n, x, y]);
  }
  const side = Math.min(72, Math.max(24, 0.5 * Math.sqrt((frame.wide * frame.high) / seen.length)));
  const boxes = [], first = seen.findIndex(([n]) => n === state.selected);
  if (first > 0) seen.unshift(...seen.splice(first, 1));
  for (const [n, x, y] of seen) {
    const image = part(n), scale = side / Math.max(image.wide, image.high);
    const [wide, high] = [image.wide * scale, image.high * scale];
    const box = { n, ...{ left: x - wide / 2, top: y - high / 2, wide, high }, image };
    const free = boxes.every((other) => box.left >= other.left + other.wide + 3 || other.left >= box.left + wide + 3 ||
      box.top >= other.top + other.high + 3 || other.top >= box.top + high + 3);
    if (free) boxes.push(box);
  }
  return boxes;
}

function paintImage(pen, { n, left, top, wide, high, image }) {
  if (!image.source.complete || !image.source.naturalWidth) return;
  pen.imageSmoothingEnabled = Math.max(image.wide, image.high) > 16;
  pen.drawImage(image.source, image.left, image.top, image.wide, image.high, left, top, wide, high);
  const one = colorings[state.coloring];
  pen.strokeStyle = one ? colorOf(one, one.classes[n]) : "#888888";
  pen.lineWidth = 2;
  pen.setLineDash([]);
  pen.strokeRect(left, top, wide, high);
}

function paintMarks(pen, frame) {
  const style = getComputedStyle(document.documentElement), color = (name) => style.getPropertyValue(`--${name}`);
  const boxes = new Map(drawn.map((box) => [box.n, box]));
  const ring = (n, line, width, radius, dash = []) => {
    const box = boxes.get(n), [x, y] = place(frame, n);
    for (const [stroke, more] of [[color("back"), 2.5], [line, 0]]) {
      pen.beginPath();
      if (box) pen.rect(box.left - width, box.top - width, box.wide + 2 * width, box.high + 2 * width);
      else pen.arc(x, y, radius, 0, 2 * Math.PI);
      [pen.strokeStyle, pen.lineWidth] = [stroke, width + more];
      pen.setLineDash(more ? [] : dash);
      pen.stroke();
    }
  };
  for (const n of (state.hits || []).slice(0, 2000)) ring(n, color("focus"), 1.5, 6);
  const { selected: n } = state;
  if (n !== null) {
    const { rows = [], k = 0 } = nearest[state.metric] || {};
    for (const other of rows.slice(n * k, (n + 1) * k)) {
      const kind = relation(n, other);
      ring(other, color(kind || "soft"), 2.5, 8, kind === "other" ? [4, 3] : []);
    }
    ring(n, color("ink"), 4, 11);
  }
  if (state.hovered !== null) ring(state.hovered, color("ink"), 3, 14);
}

// Shows the part of the map around a point.
function look(x, y, across, up) {
  plot.x_range.setv({ start: x - across, end: x + across });
  plot.y_range.setv({ start: y - up, end: y + up });
}

// Shows the whole map, with the same scale on both axes.
function fit() {
  const { width: wide, height: high } = view.frame.bbox;
  const scale = Math.max((home.right - home.left) / wide, (home.top - home.bottom) / high) * 0.54;
  look((home.left + home.right) / 2, (home.top + home.bottom) / 2, scale * wide, scale * high);
}

// Keeps the middle and the scale of the map when its size changes.
function resize() {
  const { x_range: x, y_range: y } = plot, { width: wide, height: high } = view.frame.bbox;
  if (!(wide > 0 && high > 0)) return;
  if (!resize.scale) fit();
  else look((x.start + x.end) / 2, (y.start + y.end) / 2, (resize.scale * wide) / 2, (resize.scale * high) / 2);
  repaint();
}

function move(event) {
  const { x_range: x, y_range: y } = plot, { key } = event;
  const steps = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0], ArrowUp: [0, 1, 0],
    "+": [0, 0, -1], "=": [0, 0, -1], "-": [0, 0, 1] };
  if (key === "0") return fit(), true;
  if (key === "n" || key === "N") return step(1), true;
  if (key === "p" || key === "P") return step(-1), true;
  const { left, top, width: wide, height: high } = view.frame.bbox;
  if (key === "Enter") {
    const n = under(left + wide / 2, top + high / 2, Infinity);
    if (n !== null) choose(n);
    return true;
  }
  if (!steps[key]) return false;
  const [right, up, out] = steps[key];
  if (event.shiftKey && !out) return toward(right, -up), true;
  const grow = out < 0 ? 0.6 : out > 0 ? 1 / 0.6 : 1;
  const across = (x.end - x.start) / 2, along = (y.end - y.start) / 2;
  let middle = [(x.start + x.end) / 2, (y.start + y.end) / 2];
  if (out && state.selected !== null && isInView(state.selected)) middle = [source.data.x[state.selected], source.data.y[state.selected]];
  look(middle[0] + 0.3 * right * across, middle[1] + 0.3 * up * along, across * grow, along * grow);
  return true;
}

// Selects the nearest image in a direction from the selected one.
function toward(right, down) {
  if (state.selected === null) return step(1);
  const frame = transform(), [x, y] = place(frame, state.selected);
  let best = null, least = Infinity;
  for (let n = 0; n < data.count; n++) {
    if (n === state.selected || !isShown(n)) continue;
    const [left, top] = place(frame, n), along = (left - x) * right + (top - y) * down;
    const beside = Math.abs((left - x) * down) + Math.abs((top - y) * right);
    if (along > 0 && along >= beside && along + 2 * beside < least) [best, least] = [n, along + 2 * beside];
  }
  if (best !== null) reveal(best);
}

function position(event) {
  const { left, top } = at("map").getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
}

function hover(event) {
  const card = at("card"), n = event.pointerType === "touch" || event.buttons ? null : under(...position(event));
  card.hidden = n === null;
  at("map").style.cursor = n === null ? "" : "pointer";
  point(n);
  if (card.hidden) return;
  if (card.dataset.n !== `${n}`) {
    card.dataset.n = n;
    card.replaceChildren(tile(n, 128), make("div", named(n)), ...details(n));
  }
  const { offsetWidth: wide, offsetHeight: high } = card;
  card.style.left = `${Math.max(0, event.clientX + 18 + wide > innerWidth ? event.clientX - 18 - wide : event.clientX + 18)}px`;
  card.style.top = `${Math.max(0, Math.min(event.clientY + 12, innerHeight - high - 6))}px`;
}

function escape(event) {
  if (event.key !== "Escape" || at("large").open) return;
  at("card").hidden = true;
  point(null);
  if (at("search").value && event.target === at("search")) {
    at("search").value = "";
    search();
  } else if (state.selected !== null) choose(null);
  else if (state.shown.size) showAll();
  else if (at("search").value) {
    at("search").value = "";
    search();
  }
}

function fromHash() {
  const found = /^#image-(\d+)$/.exec(location.hash), n = found && Number(found[1]);
  if (found && n < data.count && n !== state.selected) reveal(n);
  if (!found && state.selected !== null) choose(null);
}

// Takes the elements that bokeh makes out of the order of focus: the map itself has it.
function unfocus(root) {
  for (const element of root.querySelectorAll("*")) {
    element.removeAttribute("tabindex");
    if (element.shadowRoot) unfocus(element.shadowRoot);
  }
}

function listen() {
  const map = at("map");
  let down = null;
  map.addEventListener("pointerdown", (event) => {
    down = event.isPrimary && event.button === 0 && !event.target.closest("#tools") ? event : null;
    at("card").hidden = true;
  }, true);
  map.addEventListener("pointerup", (event) => {
    if (!down || !event.isPrimary || Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) > 6) return;
    const n = under(...position(event));
    if (n !== null) choose(n);
  }, true);
  map.addEventListener("pointermove", (event) => requestAnimationFrame(() => hover(event)));
  map.addEventListener("pointerleave", () => requestAnimationFrame(() => { at("card").hidden = true; point(null); }));
  map.addEventListener("keydown", (event) => {
    const other = event.ctrlKey || event.metaKey || event.altKey || event.target !== map;
    if (!other && move(event)) event.preventDefault();
  });
  at("tools").addEventListener("click", (event) => { if (event.target.dataset.key) move({ key: event.target.dataset.key }); });
  at("images").addEventListener("click", () => {
    state.images = !state.images;
    at("images").setAttribute("aria-pressed", state.images);
    repaint();
  });
  at("search").addEventListener("input", search);
  at("all").addEventListener("click", () => { showAll(); at("legend").querySelector("summary").focus(); });
  at("coloring").addEventListener("change", (event) => {
    state.coloring = Number(event.target.value);
    state.shown.clear();
    showLegend();
    showCount();
  });
  at("large").addEventListener("click", (event) => { if (event.target === at("large")) at("large").close(); });
  document.addEventListener("keydown", escape);
  addEventListener("hashchange", fromHash);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  for (const range of [plot.x_range, plot.y_range]) {
    range.change.connect(() => {
      const { width: wide } = view.frame.bbox;
      resize.scale = (plot.x_range.end - plot.x_range.start) / wide;
      repaint();
    });
  }
  new ResizeObserver(() => requestAnimationFrame(resize)).observe(map);
}

function start() {
  const found = window.Bokeh && Bokeh.documents[0];
  plot = found && found.get_model_by_name("map");
  view = plot && Bokeh.index.find_one_by_id(plot.id);
  if (!view || !view.frame || !(view.frame.bbox.width > 0)) {
    plot = null;
    return requestAnimationFrame(start);
  }
  points = found.get_model_by_name("points");
  source = points.data_source;
  const { x, y } = source.data, extent = (all) => all.reduce(([low, high], each) => [Math.min(low, each), Math.max(high, each)], [Infinity, -Infinity]);
  const [left, right] = extent(x), [bottom, top] = extent(y), size = Math.max(right - left, top - bottom) || 1;
  const pad = 0.03 * size;
  home = { left: left - pad, right: right + pad, bottom: bottom - pad, top: top + pad };
  fit();
  listen();
  unfocus(at("plot"));
  showCount();
  fromHash();
  document.body.dataset.ready = "yes";
}

function prepare() {
  const searched = [labels && "labels", data.files && "files"].filter(Boolean).join(" and ");
  at("search").hidden = !searched;
  at("search").placeholder = `Search ${searched}`;
  at("search").setAttribute("aria-label", `Search ${searched}: all words must occur`);
  at("legend").hidden = !colorings.length;
  at("coloring").hidden = colorings.length < 2;
  at("coloring").querySelector("select").append(...colorings.map(({ name }, n) => {
    const option = make("option", name);
    option.value = n;
    return option;
  }));
  at("legend").open = innerWidth > 760;
  if (colorings.length) showLegend();
  at("count").textContent = counted(data.count, "image");
  showSelected();
}

prepare();
start();
})();
