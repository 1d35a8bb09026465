"use strict";
// The page's script: colours, pictures painted from label maps, the viewer, and the confusion's regions.

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const VOID = 255, AMBER = [255, 190, 0];

// Light, dark, or as the system says.
(function theme() {
  const names = ["auto", "light", "dark"], button = $("#theme");
  const stored = () => { try { return localStorage.getItem("jaxseg-theme"); } catch { return null; } };
  let name = names.includes(stored()) ? stored() : "auto";
  function show() {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    $("span", button).textContent = name[0].toUpperCase() + name.slice(1);
    button.setAttribute("aria-label", `Colours of the page: ${name === "auto" ? "as the system" : name}`);
    shadeMatrices();
  }
  button.addEventListener("click", () => {
    name = names[(names.indexOf(name) + 1) % names.length];
    try { localStorage.setItem("jaxseg-theme", name); } catch { /* a file may have no storage */ }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", shadeMatrices);
  show();
})();

// Text that can be read on each shade.
function shadeMatrices() {
  const from = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--dark-from"));
  for (const cell of $$(".matrix td")) {
    cell.classList.toggle("dark", parseFloat(cell.style.getPropertyValue("--share")) > from);
  }
}

const source = $("#data");
if (source) start(JSON.parse(source.textContent));

function start(data) {
  const [height, width] = data.size, { classes, images, runs } = data;
  const state = { view: "prediction", run: runs.length - 1, only: new Set(), patterns: false };
  const maps = new Map();

  // A label map: zlib in base64, one byte a pixel.
  function ids(text) {
    if (!maps.has(text)) maps.set(text, inflate(text));
    return maps.get(text);
  }

  async function inflate(text) {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const shown = (id) => state.only.size === 0 || state.only.has(id);

  // Whether the pattern of a class is light at a pixel; eight patterns, then they come again.
  function marked(id, x, y) {
    switch (id % 8) {
      case 0: return false;
      case 1: return (x + y) % 6 < 2;
      case 2: return (x - y + 6000) % 6 < 2;
      case 3: return y % 5 < 1;
      case 4: return x % 5 < 1;
      case 5: return x % 5 < 2 && y % 5 < 2;
      case 6: return x % 6 < 1 || y % 6 < 1;
      default: return (x >> 2) % 2 === (y >> 2) % 2;
    }
  }

  function put(pixels, at, id, x, y, patterns) {
    let [red, green, blue] = id === VOID ? ((x + y) % 8 < 2 ? [90, 90, 90] : [0, 0, 0]) : classes[id].colour;
    if (patterns && id !== VOID && marked(id, x, y)) {
      const light = 0.3 * red + 0.6 * green + 0.1 * blue < 128 ? 255 : 0;
      [red, green, blue] = [red, green, blue].map((c) => 0.55 * c + 0.45 * light);
    }
    pixels[at] = red; pixels[at + 1] = green; pixels[at + 2] = blue; pixels[at + 3] = 255;
  }

  // One view of an image over its photo; a newer call for the same canvas wins.
  async function paint(frame, image, view, run) {
    const canvas = $("canvas", frame), photo = $("img", frame), ticket = Symbol();
    canvas.ticket = ticket;
    if (photo.src !== image.photo) photo.src = image.photo;
    photo.alt = `${image.name}: ${view}${view === "prediction" || view === "error" ? ` of ${runs[run]}` : ""}`;
    const truth = view === "photo" ? null : await ids(image.truth);
    const guess = view === "prediction" || view === "error" ? await ids(image.predictions[run]) : truth;
    if (canvas.ticket !== ticket) return;
    photo.classList.toggle("grey", view === "error" || (view !== "photo" && state.only.size > 0));
    canvas.width = width; canvas.height = height; canvas.dataset.view = view;
    if (view === "photo") return;
    const context = canvas.getContext("2d"), picture = context.createImageData(width, height), pixels = picture.data;
    for (let i = 0; i < truth.length; i++) {
      const x = i % width, y = (i / width) | 0, at = 4 * i;
      if (view === "error") {
        if (truth[i] === VOID) put(pixels, at, VOID, x, y, false);
        else if (truth[i] !== guess[i] && (shown(truth[i]) || shown(guess[i]))) {
          [pixels[at], pixels[at + 1], pixels[at + 2]] = AMBER; pixels[at + 3] = 225;
        }
      } else if (shown(guess[i])) put(pixels, at, guess[i], x, y, state.patterns);
    }
    context.putImageData(picture, 0, 0);
  }

  // Cards: painted when they come into sight.
  const cards = $$(".card"), inSight = new Set();
  function paintCard(card) {
    const image = images[card.dataset.picture];
    paint($(".frame", card), image, state.view, state.run);
    const mark = $(".mark", card);
    if (mark) mark.textContent = caption(image);
    card.setAttribute("aria-label", `${image.name}, ${state.view}; ${caption(image)}; open`);
  }
  const sort = $("#sort");
  function caption(image) {
    const c = Number(sort.value), value = isNaN(c) ? image.miou[state.run] : image.iou[state.run][c];
    return `${isNaN(c) ? "mIoU" : "IoU"} ${value === null ? "n/a" : value.toFixed(2)}`;
  }
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { inSight.add(target); paintCard(target); } else inSight.delete(target);
    }
  }, { rootMargin: "300px" });
  cards.forEach((card) => watch.observe(card));
  function repaint() { inSight.forEach(paintCard); if (viewer.open) paintViewer(); }

  // View, run, order, patterns, classes.
  const radios = $$("[data-view]", $(".segments"));
  function choose(radio) {
    state.view = radio.dataset.view;
    for (const r of radios) { r.setAttribute("aria-checked", r === radio); r.tabIndex = r === radio ? 0 : -1; }
    repaint();
  }
  radios.forEach((radio, i) => {
    radio.addEventListener("click", () => choose(radio));
    radio.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = radios[(i + step + radios.length) % radios.length];
      next.focus(); choose(next);
    });
  });
  $("#run")?.addEventListener("change", (event) => { state.run = Number(event.target.value); order(); repaint(); });
  sort.addEventListener("change", () => { order(); repaint(); });
  function order() {
    const gallery = $("#gallery"), c = Number(sort.value), last = (v) => (v === null ? Infinity : v);
    const key = (image) => {
      if (sort.value === "data") return image.index;
      const value = last(isNaN(c) ? image.miou[state.run] : image.iou[state.run][c]);
      return sort.value === "best" && value !== Infinity ? -value : value;
    };
    const sorted = $$(".card", gallery).sort((a, b) => key(images[a.dataset.picture]) - key(images[b.dataset.picture]) || a.dataset.picture - b.dataset.picture);
    gallery.append(...sorted);
  }
  $("#patterns").checked = state.patterns = matchMedia("(prefers-contrast: more)").matches;
  $("#patterns").addEventListener("change", (event) => { state.patterns = event.target.checked; chips(); repaint(); });
  function chips() {
    for (const chip of $$("[data-class]")) {
      const id = Number(chip.dataset.class), canvas = $("canvas", chip), context = canvas.getContext("2d");
      const picture = context.createImageData(14, 14);
      for (let i = 0; i < 196; i++) put(picture.data, 4 * i, id, i % 14, (i / 14) | 0, state.patterns);
      context.putImageData(picture, 0, 0);
      chip.setAttribute("aria-pressed", state.only.has(id));
    }
    $("#all").hidden = state.only.size === 0;
  }
  for (const chip of $$("[data-class]")) {
    chip.addEventListener("click", () => {
      const id = Number(chip.dataset.class);
      if (!state.only.delete(id)) state.only.add(id);
      chips(); repaint();
    });
  }
  $("#all").addEventListener("click", () => { state.only.clear(); chips(); repaint(); });

  // The viewer: two views of a photo with a slider between them.
  const viewer = $("#viewer"), stage = $("#stage"), slide = $("#slide"), left = $("#left"), right = $("#right");
  const [under, over] = $$(".side", stage);
  const several = runs.length > 1;
  const views = [["photo", 0, "Photo"], ["truth", 0, "Truth"]];
  for (const [view, name] of [["prediction", "Prediction"], ["error", "Errors"]]) {
    runs.forEach((run, r) => views.push([view, r, several ? `${name}, ${run}` : name]));
  }
  for (const select of [left, right]) {
    views.forEach(([, , name], i) => select.append(new Option(name, i)));
    select.addEventListener("change", paintViewer);
  }
  const find = (view) => views.findLastIndex((v) => v[0] === view);
  left.value = 0; right.value = find("prediction");
  let current = 0, opener = null;
  function neighbours() { return $$("#gallery .card").map((card) => Number(card.dataset.picture)); }

  function open(position, from) {
    current = position; opener = from;
    paintViewer();
    if (!viewer.open) viewer.showModal();
  }
  function paintViewer() {
    const image = images[current], order = neighbours();
    stage.style.aspectRatio = `${width}/${height}`;
    stage.style.width = `min(100%, ${((58 * width) / height).toFixed(1)}vh)`;
    $("#viewer-name").textContent = `${image.name} (${order.indexOf(current) + 1} of ${order.length})`;
    const figures = runs.map((run, r) => `${several ? run + ": " : ""}mIoU ${image.miou[r] === null ? "n/a" : image.miou[r].toFixed(3)}`);
    const by = classes.map((c, i) => [c.name, image.iou.at(-1)[i]]).filter(([, v]) => v !== null);
    $("#viewer-figures").textContent = `${figures.join(", ")}. ${several ? runs.at(-1) + ", " : ""}IoU: ${by.map(([n, v]) => `${n} ${v.toFixed(2)}`).join(", ")}.`;
    $("#readout").textContent = "";
    for (const [side, select] of [[under, left], [over, right]]) {
      const [view, run] = views[select.value];
      paint(side, image, view, run);
    }
  }
  function step(by) {
    const order = neighbours();
    current = order[(order.indexOf(current) + by + order.length) % order.length];
    paintViewer();
  }
  document.addEventListener("click", (event) => {
    const card = event.target.closest("[data-open]");
    if (card) open(Number(card.dataset.open), card);
  });
  $("#previous").addEventListener("click", () => step(-1));
  $("#next").addEventListener("click", () => step(1));
  $("#close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("close", () => opener?.focus());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    const inControl = event.target.matches("input, select");
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by && !inControl) { event.preventDefault(); step(by); }
    const view = { 1: "photo", 2: "truth", 3: "prediction", 4: "error" }[event.key];
    if (view) { right.value = find(view); paintViewer(); }
  });
  function moveTo(percent) { stage.style.setProperty("--slide", `${percent}%`); slide.value = percent; }
  slide.addEventListener("input", () => moveTo(slide.value));
  async function pointed(event) {
    const box = stage.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
    if (event.buttons & 1) moveTo(Math.round(100 * Math.min(1, Math.max(0, across))));
    const x = Math.floor(across * width), y = Math.floor(down * height), image = images[current];
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const name = (id) => (id === VOID ? "void" : classes[id].name);
    const truth = await ids(image.truth), guesses = await Promise.all(image.predictions.map(ids));
    const said = guesses.map((g, r) => `${several ? runs[r] + ": " : "prediction: "}${name(g[y * width + x])}`);
    $("#readout").textContent = `truth: ${name(truth[y * width + x])}; ${said.join("; ")}`;
  }
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); pointed(event); });
  stage.addEventListener("pointermove", pointed);

  // The confusion's regions.
  const panel = $("#regions");
  function openCell(button) {
    for (const other of $$("[data-cell]")) other.setAttribute("aria-expanded", other === button);
    const regions = data.regions[button.dataset.cell], title = document.createElement("h3");
    title.textContent = `${button.dataset.title}${$$(".matrix").length > 1 ? ` (${button.dataset.run})` : ""}`;
    const note = document.createElement("p"), crops = document.createElement("div");
    note.className = "note";
    note.textContent = `${Number(button.dataset.pixels).toLocaleString("en")} pixels of the split; the ${regions.length} largest regions, at most one a photo, outlined.`;
    crops.className = "crops";
    for (const region of regions) {
      const holder = document.createElement(region.image === null ? "figure" : "button");
      const picture = document.createElement("img"), text = document.createElement("span");
      picture.src = region.uri; picture.alt = `${button.dataset.title} in ${region.name}`;
      text.className = "caption"; text.textContent = `${region.name}, ${region.pixels.toLocaleString("en")} pixels`;
      if (region.image !== null) { holder.type = "button"; holder.dataset.open = region.image; }
      holder.append(picture, text);
      crops.append(holder);
    }
    panel.replaceChildren(title, note, crops);
  }
  for (const button of $$("[data-cell]")) {
    button.addEventListener("click", () => openCell(button));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const table = button.closest("tbody"), cell = button.closest("td"), row = cell.parentElement;
      let y = row.rowIndex - 1, x = cell.cellIndex;
      for (;;) {
        y += step[0]; x += step[1];
        const next = table.rows[y]?.cells[x];
        if (!next) return;
        const target = $("button", next);
        if (target) { target.focus(); return; }
      }
    });
  }
  const largest = $$("[data-cell]").filter((b) => b.dataset.cell.startsWith(`${matrixRun()}-`)).sort((a, b) => b.dataset.pixels - a.dataset.pixels)[0];
  function matrixRun() { return Math.max(...$$("[data-cell]").map((b) => Number(b.dataset.cell.split("-")[0]))); }
  if (largest) openCell(largest);
  order();
  chips();
}
