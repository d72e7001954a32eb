// The chart: a point per row, axes to choose, and the Pareto front of the points that are shown.
(() => {
  const data = dataOf("chart-data");
  if (!data) return;
  const plot = byId("chart-plot"), said = byId("chart-said"), key = byId("chart-key");
  const selects = { y: byId("chart-y"), x: byId("chart-x"), group: byId("chart-group") };
  const axes = { y: data.y, x: data.x };
  const FIRST = 4; // values of a point come after scheme, group, label and whether it is ranked
  const LABELS = 14; // names next to points, up to this number of points
  let points = [], front = [], chart = null;

  const axisOf = (side) => +selects[side].value;
  const valueOf = (point, side) => point[FIRST + (side === "x" ? data.y.length : 0) + axisOf(side)];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Colours are those of the figures, which are on white; on a dark page they get some of it.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  function onPage(hex) {
    if (!dark.matches) return hex;
    const parts = [1, 3, 5].map((at) => Math.round(0.65 * parseInt(hex.slice(at, at + 2), 16) + 0.35 * 255));
    return `rgb(${parts.join(" ")})`;
  }

  // 1234567 as 1.23 M.
  function si(value) {
    if (value === null) return "-";
    const size = Math.abs(value);
    if (size < 1000) return size >= 1 || size === 0 ? String(+value.toPrecision(4)) : value.toPrecision(3);
    const power = Math.min(Math.floor(Math.log10(size) / 3), 8);
    return +(value / 10 ** (3 * power)).toPrecision(3) + " " + " kMGTPEZY"[power];
  }
  function choose() {
    const group = selects.group ? selects.group.value : "all";
    points = data.points
      .filter((p) => group === "all" || p[1] === +group)
      .map((p) => ({ scheme: data.schemes[p[0]], group: p[1], label: p[2], ranked: p[3], x: valueOf(p, "x"), y: valueOf(p, "y") }))
      .filter((p) => p.x !== null && p.y !== null && p.x > 0)
      .sort((a, b) => a.x - b.x || a.y - b.y);
    front = [];
    const sign = axes.y[axisOf("y")].lower ? 1 : -1;
    let best = Infinity;
    for (const point of [...points].sort((a, b) => a.x - b.x || sign * (a.y - b.y))) {
      if (point.ranked && sign * point.y < best) { best = sign * point.y; front.push(point); }
    }
  }
  function mark(context, point, x, y, size) {
    context.beginPath();
    const corners = point.scheme.corners;
    for (const [dx, dy] of corners) context.lineTo(x + dx * size, y + dy * size);
    if (!corners.length) context.arc(x, y, size, 0, 7);
    context.closePath();
    context.strokeStyle = onPage(point.scheme.color);
    context.fillStyle = point.ranked ? onPage(point.scheme.color) : color("--card");
    context.fill();
    context.stroke();
  }
  // Schemes by their marks, where points are too many to be named.
  function showKey() {
    const schemes = points.length > LABELS ? data.schemes.filter((of) => points.some((point) => point.scheme === of)) : [];
    const ratio = devicePixelRatio || 1, side = 16;
    key.replaceChildren(...schemes.map((scheme) => {
      const canvas = make("canvas", { width: side * ratio, height: side * ratio });
      const context = canvas.getContext("2d");
      context.lineWidth = 1.5 * ratio;
      mark(context, { scheme, ranked: 1 }, side / 2 * ratio, side / 2 * ratio, 4.5 * ratio);
      return make("li", {}, canvas, scheme.name);
    }));
    if (points.length > LABELS && points.some((point) => !point.ranked)) key.append(make("li", {}, "hollow: not ranked"));
  }
  function draw(u) {
    const context = u.ctx, ratio = devicePixelRatio || 1;
    const at = (point) => [u.valToPos(point.x, "x", true), u.valToPos(point.y, "y", true)];
    context.save();
    context.beginPath();
    context.rect(u.bbox.left, u.bbox.top - 8 * ratio, u.bbox.width + 8 * ratio, u.bbox.height + 16 * ratio);
    context.clip();
    context.strokeStyle = color("--muted");
    context.lineWidth = 1.25 * ratio;
    context.setLineDash([4 * ratio, 3 * ratio]);
    context.beginPath();
    front.forEach((point, index) => {
      const [x, y] = at(point);
      if (index) context.lineTo(x, at(front[index - 1])[1]);
      context.lineTo(x, y);
    });
    context.stroke();
    context.setLineDash([]);
    context.lineWidth = 1.5 * ratio;
    for (const point of points) mark(context, point, ...at(point), (points.length > 60 ? 3 : 4.5) * ratio);
    context.restore();
    if (points.length > LABELS) return;
    context.save();
    context.font = 12 * ratio + "px system-ui, sans-serif";
    context.fillStyle = color("--text");
    context.textBaseline = "middle";
    context.textAlign = "left";
    const taken = points.map((point) => { const [x, y] = at(point); return [x - 6 * ratio, y - 6 * ratio, x + 6 * ratio, y + 6 * ratio]; });
    front.slice(1).forEach((point, index) => { // the steps of the front
      const [right, low] = at(point), [left, high] = at(front[index]), near = 3 * ratio;
      taken.push([left, high - near, right, high + near], [right - near, Math.min(low, high), right + near, Math.max(low, high)]);
    });
    for (const point of points) {
      const [x, y] = at(point), width = context.measureText(point.label).width, gap = 9 * ratio, high = 8 * ratio;
      const places = [[x + gap, y], [x - gap - width, y], [x - width / 2, y - 2 * high], [x - width / 2, y + 2 * high],
        [x + gap, y - 1.5 * high], [x + gap, y + 1.5 * high], [x - gap - width, y - 1.5 * high], [x - gap - width, y + 1.5 * high]];
      const place = places.find(([left, middle]) => {
        const box = [left, middle - high, left + width, middle + high];
        return box[0] > u.bbox.left && box[2] < u.bbox.left + u.bbox.width + 6 * ratio &&
          box[1] > 0 && box[3] < u.bbox.top + u.bbox.height &&
          taken.every((other) => box[2] < other[0] || other[2] < box[0] || box[3] < other[1] || other[3] < box[1]);
      });
      if (!place) continue; // the point is named when it is pointed at
      taken.push([place[0], place[1] - high, place[0] + width, place[1] + high]);
      context.fillText(point.label, ...place);
    }
    context.restore();
  }
  function tell(point) {
    const several = selects.group && selects.group.value === "all";
    const named = (p) => p.label + (several ? `, ${data.groups[p.group]}` : "");
    const names = front.map(named);
    const shown = names.length > 8 ? names.slice(0, 8).join("; ") + " and " + (names.length - 8) + " more" : names.join("; ");
    said.textContent = point
      ? `${named(point)}: ${+point.y.toPrecision(5)}, ${si(point.x)}`
      : points.length ? `Pareto front (dashed): ${shown}` : "No row has both of these.";
  }
  function nearest(u) {
    const { left, top } = u.cursor;
    let best = null, least = 28;
    if (left >= 0) for (const point of points) {
      const away = Math.hypot(u.valToPos(point.x, "x") - left, u.valToPos(point.y, "y") - top);
      if (away < least) { least = away; best = point; }
    }
    return best;
  }
  function show() {
    choose();
    const width = plot.clientWidth || 600, height = Math.max(280, Math.min(440, width * 0.55));
    const text = color("--muted"), line = color("--line");
    if (chart) chart.destroy();
    chart = null;
    plot.textContent = "";
    tell(null);
    showKey();
    const [x, y] = ["x", "y"].map((side) => axes[side][axisOf(side)]);
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${y.label} against ${x.label}, ${points.length} rows. ${said.textContent}`);
    if (!points.length) return;
    const low = points[0].x, high = points[points.length - 1].x, log = high > 3 * low;
    const spread = (least, most) => { const pad = (most - least || Math.abs(most) || 1) * 0.1; return [least - pad, most + pad]; };
    const wide = high > low ? Math.max((high / low) ** 0.08, 1.02) : 1.5;
    const ys = points.map((point) => point.y);
    const font = "12px system-ui, sans-serif";
    const look = { stroke: text, font, labelFont: font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    // Powers of ten alone may leave an axis without a number.
    const splits = (u, axis, least, most) => [...Array(18)].flatMap((_, power) => [1, 2, 5].map((n) => n * 10 ** (power - 6 + 3 * (most > 1e9))))
      .concat(most > 1e9 ? [...Array(12)].flatMap((_, power) => [1, 2, 5].map((n) => n * 10 ** (power + 15))) : [])
      .filter((value) => value >= least && value <= most).filter((_, index, all) => all.length < 9 || index % 3 === 0);
    chart = new uPlot({
      width, height, legend: { show: false }, padding: [12, 14, 0, 0],
      cursor: { drag: { x: false, y: false }, points: { show: false } },
      scales: {
        x: { time: false, distr: log ? 3 : 1, range: log ? [low / wide, high * wide] : spread(low, high) },
        y: { range: spread(Math.min(...ys), Math.max(...ys)) },
      },
      axes: [
        { ...look, label: x.label, size: 34, labelSize: 24, values: (u, all) => all.map((v) => (v === null ? "" : si(v))), ...(log ? { splits, filter: (u, all) => all } : { space: 70 }) },
        { ...look, label: y.label, size: 52, labelSize: 24, values: (u, all) => all.map((v) => +v.toPrecision(6) + "") },
      ],
      series: [{}, { paths: () => null, points: { show: false } }],
      hooks: { draw: [draw], setCursor: [(u) => tell(nearest(u))] },
    }, [points.map((point) => point.x), ys], plot);
  }

  for (const select of Object.values(selects)) if (select) select.addEventListener("change", () => {
    // All rows of a budget have the same one.
    if (select === selects.x && selects.group && axes.x[axisOf("x")].name === "train_flops") selects.group.value = "all";
    show();
  });
  byId("chart-card").querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  // After the page is shown: a chart costs more than all tables.
  const begin = () => {
    show();
    new ResizeObserver(() => { if (!chart || Math.abs(chart.width - plot.clientWidth) > 1) show(); }).observe(plot);
    dark.addEventListener("change", show);
  };
  if (document.readyState === "complete") begin();
  else window.addEventListener("load", begin);
})();
