// Facts as JSON, and pictures and maps as lines of base64 that are read when they are needed.
export const facts = JSON.parse(document.getElementById("facts").textContent);
export const n = facts.points.length;

const lines = {};
function line(name, k) {
  lines[name] ??= document.getElementById(name).textContent.split("\n");
  return lines[name][k];
}

export const photoAddress = (i) => `data:image/webp;base64,${line("photos", i)}`;

async function unpack(name, k) {
  const packed = Uint8Array.from(atob(line(name, k)), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The decision map of photograph i, if there is one, and its strongest channels of each layer.
export async function mapsOf(i) {
  const bytes = await unpack("maps", i);
  let start = 0;
  let decision = null;
  if (facts.decisions[i]) {
    const [height, width, limit] = facts.decisions[i];
    const values = new Int8Array(bytes.buffer, 0, height * width);
    decision = { height, width, limit, values };
    start = height * width;
  }
  const layers = facts.layers.map((name, k) => {
    const [height, width] = facts.shapes[k];
    const maps = facts.channels[i][k].map((channel, c) => {
      const values = bytes.subarray(start, (start += height * width));
      return { channel, peak: facts.peaks[i][k][c], values };
    });
    return { name, height, width, maps, total: facts.widths[k] };
  });
  return { decision, layers };
}

// All channels of each layer, for the photographs that have them.
export async function allMapsOf(i) {
  const place = facts.details.indexOf(i);
  if (place < 0) return null;
  const bytes = await unpack("details", place);
  let start = 0;
  return facts.layers.map((name, k) => {
    const [height, width] = facts.shapes[k];
    return Array.from({ length: facts.widths[k] }, (_, channel) => ({
      channel,
      values: bytes.subarray(start, (start += height * width)),
    }));
  });
}

const { truth, predicted } = facts;
export const isMistake = (i) => Boolean(truth && predicted) && truth[i] !== predicted[i];

// Ten classes have colors that most people can tell apart, the others are gray.
const COLORS = "#4477AA #EE6677 #228833 #CCBB44 #66CCEE #AA3377 #882255 #44AA99 #999933 #7C6FD0".split(" ");
const labels = truth ?? predicted;
const counts = new Map();
for (const label of labels ?? []) counts.set(label, (counts.get(label) ?? 0) + 1);
const largest = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([label]) => label);
const colorOf = new Map(largest.slice(0, COLORS.length).map((label, k) => [label, COLORS[k]]));
export const color = (i) => (labels && colorOf.get(labels[i])) || null;
export const legend = largest
  .slice(0, COLORS.length)
  .map((label) => ({ name: facts.classes[label], color: colorOf.get(label) }));
export const countOf = (list) => {
  const found = new Map();
  for (const label of list) found.set(label, (found.get(label) ?? 0) + 1);
  return found;
};
