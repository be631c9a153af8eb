// The panel: one photograph with all that is known of it, or the photographs inside a lasso.
import { allMapsOf, color, countOf, facts, isMistake, mapsOf, photoAddress } from "./data.js";
import { diverging, viridis } from "./colors.js";

const MOST = 240;

// All text goes in as text: names of files and classes may hold anything.
function make(tag, { text, ...settings } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), settings);
  if (text !== undefined) element.textContent = text;
  element.append(...children.filter(Boolean));
  return element;
}

function thumbs(list, onPick, describe) {
  const grid = make("div", { className: "grid thumbs" });
  for (const i of list) {
    const image = make("img", { alt: "", loading: "lazy", src: photoAddress(i) });
    const button = make("button", { type: "button", title: describe(i) }, image);
    button.setAttribute("aria-label", describe(i));
    if (color(i)) button.style.borderColor = color(i);
    button.addEventListener("click", () => onPick(i));
    grid.append(button);
  }
  return grid;
}

function describe(i) {
  const name = facts.names[i].split(/[\\/]/).pop();
  return isMistake(i) ? `${name}, mistake` : name;
}

function paint(canvas, { height, width }, values, toColor) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  values.forEach((value, k) => pixels.data.set(toColor(value), 4 * k));
  context.putImageData(pixels, 0, 0);
}

function mapFigure(layer, map, ratio) {
  const canvas = make("canvas");
  canvas.style.aspectRatio = ratio;
  paint(canvas, layer, map.values, viridis);
  const text = map.peak === undefined ? `${map.channel}` : `${map.channel}: ${map.peak}`;
  return make("figure", {}, canvas, make("figcaption", { text }));
}

export function makePanel(element, onPick) {
  let current = 0;

  function table(i) {
    const rows = [];
    if (facts.truth) rows.push(["true", facts.classes[facts.truth[i]]]);
    if (facts.predicted) {
      const dd = make("dd", { text: facts.classes[facts.predicted[i]] });
      if (isMistake(i)) dd.className = "wrong";
      if (isMistake(i)) dd.append(" (mistake)");
      rows.push(["predicted", dd]);
    }
    if (facts.scores) rows.push([facts.scoreName, String(facts.scores[i])]);
    if (facts.targets) rows.push(["true", facts.targets[i]]);
    if (facts.values) rows.push(["predicted", facts.values[i]]);
    const list = make("dl");
    for (const [name, value] of rows) {
      list.append(make("dt", { text: name }));
      list.append(typeof value === "string" ? make("dd", { text: value }) : value);
    }
    return list;
  }

  function decisionToggle(frame, decision, i) {
    if (!decision) return facts.decisionNote && make("p", { className: "note", text: facts.decisionNote });
    const canvas = make("canvas");
    paint(canvas, decision, decision.values, diverging);
    const box = make("input", { type: "checkbox", id: "decision", checked: true });
    const set = () => {
      canvas.hidden = !box.checked;
      frame.classList.toggle("gray", box.checked);
    };
    box.addEventListener("change", set);
    frame.append(canvas);
    set();
    const name = facts.classes[facts.predicted[i]];
    const text = ` where the decision came from: red speaks for ${name}, blue against it`;
    return make("label", {}, box, document.createTextNode(text));
  }

  async function showPhoto(i) {
    const turn = ++current;
    const image = make("img", { alt: `Photograph ${facts.names[i]}`, src: photoAddress(i) });
    const frame = make("div", { className: "photo" }, image);
    const body = make("div");
    element.replaceChildren(make("h2", { text: facts.names[i] }), frame, table(i), body);
    element.scrollTop = 0;
    const [{ decision, layers }] = await Promise.all([mapsOf(i), image.decode().catch(() => {})]);
    if (turn !== current) return; // another photograph was picked meanwhile
    const ratio = image.naturalWidth ? `${image.naturalWidth} / ${image.naturalHeight}` : "1";
    const toggle = decisionToggle(frame, decision, i);
    if (toggle) body.append(toggle);
    if (facts.neighbors[i].length) {
      body.append(make("h3", { text: "Nearest neighbors" }));
      body.append(thumbs(facts.neighbors[i], onPick, describe));
    }
    layers.forEach((layer, k) => {
      body.append(make("h3", { text: `${layer.name}: the ${layer.maps.length} strongest of ${layer.total} channels` }));
      const grid = make("div", { className: "grid" });
      grid.append(...layer.maps.map((map) => mapFigure(layer, map, ratio)));
      body.append(grid);
      if (facts.details.includes(i)) {
        const button = make("button", { type: "button", text: `All ${layer.total} channels` });
        button.addEventListener("click", async () => {
          const all = await allMapsOf(i);
          grid.replaceChildren(...all[k].map((map) => mapFigure(layer, map, ratio)));
          button.remove();
        });
        body.append(button);
      }
    });
  }

  function showList(list) {
    ++current;
    const title = make("h2", { text: `${list.length} selected` });
    const labels = facts.truth ?? facts.predicted;
    const counts = labels ? [...countOf(list.map((i) => labels[i]))].sort((a, b) => b[1] - a[1]) : [];
    const text = counts.slice(0, 12).map(([label, count]) => `${facts.classes[label]} ${count}`).join(", ");
    const children = [title, make("p", { className: "note", text })];
    children.push(thumbs(list.slice(0, MOST), onPick, describe));
    if (list.length > MOST) children.push(make("p", { className: "note", text: `The first ${MOST} are shown.` }));
    element.replaceChildren(...children);
    element.scrollTop = 0;
  }

  return { showPhoto, showList };
}
