// The map: points, thumbnails where there is room, zoom, lasso, and steps by keys.
import { polygonContains } from "d3-polygon";
import { quadtree } from "d3-quadtree";
import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";
import { color, facts, isMistake, n, photoAddress } from "./data.js";

const MARGIN = 34;
const WIDTH = 56;
const HEIGHT = 42;

export function makeMap(canvas, { onPick, onLasso, onLassoMode }) {
  const context = canvas.getContext("2d");
  let size = [1, 1];
  let transform = zoomIdentity;
  let shown = Array.from({ length: n }, (_, i) => i);
  let picked = -1;
  let marked = new Set();
  let lassoMode = false;
  let path = null;
  let frame = 0;
  let ended = 0;
  const images = new Map();
  const styles = getComputedStyle(document.documentElement);

  const place = (i) => [
    MARGIN + facts.points[i][0] * (size[0] - 2 * MARGIN),
    MARGIN + (1 - facts.points[i][1]) * (size[1] - 2 * MARGIN),
  ];
  const onScreen = (i) => transform.apply(place(i));

  function image(i) {
    if (!images.has(i)) {
      const loaded = new Image();
      images.set(i, null);
      loaded.onload = () => {
        images.set(i, loaded);
        draw();
      };
      loaded.src = photoAddress(i);
    }
    return images.get(i);
  }

  function draw() {
    frame ||= requestAnimationFrame(paint);
  }

  function paint() {
    frame = 0;
    const ratio = devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, ...size);
    const plain = styles.getPropertyValue("--plain");
    const dots = new Map();
    const pictures = [];
    // The picked photograph and the marked ones come first: they get the room.
    const isFirst = (i) => i === picked || marked.has(i);
    const first = shown.filter(isFirst);
    const rooms = new Map();
    for (const i of first.length ? first.concat(shown.filter((i) => !isFirst(i))) : shown) {
      const [x, y] = onScreen(i);
      if (x < -WIDTH || y < -HEIGHT || x > size[0] + WIDTH || y > size[1] + HEIGHT) continue;
      if (hasRoom(rooms, x, y)) pictures.push([i, x, y]);
      const key = color(i) ?? plain;
      if (!dots.has(key)) dots.set(key, []);
      dots.get(key).push(x, y, marked.size && !marked.has(i));
    }
    const side = n > 3000 ? 4 : 6;
    for (const [key, places] of dots) {
      context.fillStyle = key;
      for (let k = 0; k < places.length; k += 3) {
        context.globalAlpha = places[k + 2] ? 0.25 : 0.9;
        context.fillRect(places[k] - side / 2, places[k + 1] - side / 2, side, side);
      }
    }
    context.globalAlpha = 1;
    for (const [i, x, y] of pictures) paintPicture(i, x, y, plain);
    if (path) paintLasso();
  }

  const cell = (column, row) => column * 4096 + row;

  // Thumbnails never cover one another: each needs its own cell and free neighbors.
  function hasRoom(rooms, x, y) {
    const column = Math.floor(x / WIDTH);
    const row = Math.floor(y / HEIGHT);
    for (let a = column - 1; a <= column + 1; a++) {
      for (let b = row - 1; b <= row + 1; b++) {
        const taken = rooms.get(cell(a, b));
        if (!taken) continue;
        for (const [u, v] of taken) {
          if (Math.abs(u - x) < WIDTH + 5 && Math.abs(v - y) < HEIGHT + 5) return false;
        }
      }
    }
    const taken = rooms.get(cell(column, row));
    if (taken) taken.push([x, y]);
    else rooms.set(cell(column, row), [[x, y]]);
    return true;
  }

  function paintPicture(i, x, y, plain) {
    const found = image(i);
    if (!found) return;
    const scale = Math.max(WIDTH / found.naturalWidth, HEIGHT / found.naturalHeight);
    const [w, h] = [WIDTH / scale, HEIGHT / scale];
    const left = (found.naturalWidth - w) / 2;
    const top = (found.naturalHeight - h) / 2;
    context.globalAlpha = marked.size && !marked.has(i) ? 0.3 : 1;
    context.drawImage(found, left, top, w, h, x - WIDTH / 2, y - HEIGHT / 2, WIDTH, HEIGHT);
    const isPicked = i === picked;
    context.lineWidth = isPicked ? 5 : 3;
    context.strokeStyle = isPicked ? styles.getPropertyValue("--accent") : color(i) ?? plain;
    context.strokeRect(x - WIDTH / 2, y - HEIGHT / 2, WIDTH, HEIGHT);
    if (isMistake(i)) {
      context.beginPath();
      context.arc(x + WIDTH / 2 - 9, y - HEIGHT / 2 + 9, 7, 0, 7);
      context.fillStyle = "#000";
      context.fill();
      context.fillStyle = "#fff";
      context.font = "bold 11px system-ui, sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText("×", x + WIDTH / 2 - 9, y - HEIGHT / 2 + 9.5);
    }
    context.globalAlpha = 1;
  }

  function paintLasso() {
    context.beginPath();
    for (const [x, y] of path) context.lineTo(x, y);
    context.closePath();
    context.strokeStyle = styles.getPropertyValue("--accent");
    context.lineWidth = 1.5;
    context.setLineDash([5, 4]);
    context.stroke();
    context.setLineDash([]);
  }

  const behavior = zoom()
    .scaleExtent([0.7, 60])
    .clickDistance(5)
    .filter((event) => {
      if (event.type === "wheel" || event.touches?.length > 1) return true;
      return !event.button && !event.shiftKey && !event.ctrlKey && !lassoMode;
    })
    .on("zoom", (event) => {
      transform = event.transform;
      draw();
    });
  const selection = select(canvas).call(behavior).on("dblclick.zoom", null);

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || !(lassoMode || event.shiftKey) || !event.isPrimary) return;
    path = [at(event)];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!path || !event.isPrimary) return;
    path.push(at(event));
    draw();
  });
  const finish = (event) => {
    if (!path || !event.isPrimary) return;
    const outline = path;
    path = null;
    if (event.type === "pointerup" && outline.length > 3) {
      onLasso(shown.filter((i) => polygonContains(outline, onScreen(i))));
      setLasso(false);
    }
    ended = performance.now();
    draw();
  };
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", finish);
  canvas.addEventListener("click", (event) => {
    // The end of a lasso is a click, too.
    if (lassoMode || event.shiftKey || performance.now() - ended < 100) return;
    const [x, y] = at(event);
    // A picture that is hit wins over a dot nearby.
    const tree = quadtree(shown, (i) => onScreen(i)[0], (i) => onScreen(i)[1]);
    const found = tree.find(x, y, 30);
    if (found !== undefined) onPick(found);
  });

  function setLasso(mode) {
    lassoMode = mode;
    canvas.classList.toggle("lasso", mode);
    onLassoMode(mode);
  }

  const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function step([dx, dy]) {
    const from = picked >= 0 ? onScreen(picked) : [size[0] / 2, size[1] / 2];
    let best = -1;
    let least = Infinity;
    for (const i of shown) {
      if (i === picked) continue;
      const [x, y] = onScreen(i);
      const along = (x - from[0]) * dx + (y - from[1]) * dy;
      const aside = Math.abs((x - from[0]) * dy) + Math.abs((y - from[1]) * dx);
      const cost = along + 2 * aside;
      if (along > 0 && along >= aside && cost < least) [best, least] = [i, cost];
    }
    if (best < 0 && picked < 0 && shown.length) best = shown[0];
    if (best >= 0) onPick(best);
  }
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (DIRECTIONS[event.key]) step(DIRECTIONS[event.key]);
    else if (event.key === "+" || event.key === "=") selection.call(behavior.scaleBy, 1.4);
    else if (event.key === "-") selection.call(behavior.scaleBy, 1 / 1.4);
    else return;
    event.preventDefault();
  });

  new ResizeObserver(() => {
    const box = canvas.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    size = [box.width, box.height];
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round(box.height * ratio));
    behavior.extent([[0, 0], size]);
    paint();
  }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  return {
    draw,
    setLasso,
    isLasso: () => lassoMode,
    show: (list) => {
      shown = list;
      draw();
    },
    mark: (list) => {
      marked = new Set(list);
      draw();
    },
    // Picks a photograph, and brings it into the window if it lies outside.
    pick: (i) => {
      picked = i;
      if (i >= 0) {
        const [x, y] = onScreen(i);
        if (x < 0 || y < 0 || x > size[0] || y > size[1]) {
          selection.call(behavior.translateTo, ...place(i));
        }
      }
      draw();
    },
    reset: () => selection.call(behavior.transform, zoomIdentity),
    onScreen,
    paint,
  };
}
