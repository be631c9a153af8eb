// Color scales: viridis, and red and blue around nothing.
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];

export function viridis(value) {
  const place = (value / 255) * (VIRIDIS.length - 1);
  const k = Math.min(VIRIDIS.length - 2, Math.floor(place));
  const part = place - k;
  return [...VIRIDIS[k].map((low, c) => low + part * (VIRIDIS[k + 1][c] - low)), 255];
}

// Bytes from -127 to 127, from white to red or blue; zero is transparent.
export function diverging(value) {
  const strength = Math.min(1, Math.abs(value) / 127);
  const end = value > 0 ? [178, 24, 43] : [33, 102, 172];
  return [...end.map((part) => 247 + strength * (part - 247)), 215 * Math.sqrt(strength)];
}
