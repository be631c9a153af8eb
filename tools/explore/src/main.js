import { facts, isMistake, legend, n } from "./data.js";
import { makeMap } from "./map.js";
import { makePanel } from "./panel.js";

const byId = (id) => document.getElementById(id);
const everything = Array.from({ length: n }, (_, i) => i);
const [truth, predicted, mistakes, lasso] = ["truth", "predicted", "mistakes", "lasso"].map(byId);

function pick(i) {
  map.pick(i);
  panel.showPhoto(i);
}

const panel = makePanel(byId("panel"), pick);
const map = makeMap(byId("points"), {
  onPick: pick,
  onLasso: (list) => {
    map.mark(list);
    panel.showList(list);
  },
  onLassoMode: (mode) => lasso.setAttribute("aria-pressed", String(mode)),
});

function filter() {
  const shown = everything.filter(
    (i) =>
      (truth.value === "" || facts.truth[i] === Number(truth.value)) &&
      (predicted.value === "" || facts.predicted[i] === Number(predicted.value)) &&
      (!mistakes.checked || isMistake(i)),
  );
  map.show(shown);
  byId("count").textContent =
    shown.length === n ? `${n.toLocaleString()} shown` : `${shown.length.toLocaleString()} of ${n.toLocaleString()} shown`;
}

function fill(list, labels, label) {
  if (!labels) {
    label.hidden = true;
    label.style.display = "none";
  }
  list.append(new Option("all", ""));
  const used = new Set(labels ?? []);
  facts.classes.forEach((name, k) => used.has(k) && list.append(new Option(name, k)));
  list.addEventListener("change", filter);
}

function reset() {
  truth.value = predicted.value = "";
  mistakes.checked = false;
  map.mark([]);
  map.setLasso(false);
  map.reset();
  filter();
}

fill(truth, facts.truth, byId("truth-label"));
fill(predicted, facts.predicted, byId("predicted-label"));
if (!facts.truth || !facts.predicted) byId("mistakes-label").style.display = "none";
mistakes.addEventListener("change", filter);
lasso.addEventListener("click", () => map.setLasso(!map.isLasso()));
byId("reset").addEventListener("click", reset);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLSelectElement) return;
  if (event.key === "l" || event.key === "L") map.setLasso(!map.isLasso());
  else if (event.key === "Escape") reset();
});
for (const { name, color } of legend) {
  const mark = document.createElement("i");
  mark.style.background = color;
  const item = document.createElement("li");
  item.append(mark, name);
  byId("legend").append(item);
}
filter();
// For measurements and tests: where photographs lie, and how long a picture of the map takes.
window.cnnfeat = { map, facts, pick };
