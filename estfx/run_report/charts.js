// Makes the charts of a report answer: values where the pointer or the arrow keys are, and a closer look at a span.
// Each chart is drawn by matplotlib. Its `data-chart` holds the frame in the drawing's own units, the values
// at the frame's edges, and the points of each line.
"use strict";
for (const svg of document.querySelectorAll("svg[data-chart]")) liven(svg, JSON.parse(svg.dataset.chart));

function liven(svg, chart) {
  const figure = svg.closest("figure"), [left, top, right, bottom] = chart.frame;
  const whole = { x: chart.x, y: chart.y };
  let view = whole, at = null, began = null; // what is shown, where values are read, where a span was begun
  const dense = chart.lines.filter((line) => line.dense), lines = dense.length ? dense : chart.lines;
  const points = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);

  // what is drawn inside the frame moves into windows that clip and stretch it, one behind the grid and one before it
  const axes = svg.querySelector('[id$="axes_1"]'), parts = [...axes.children];
  const grids = parts.filter((each) => each.id.includes("matplotlib.axis"));
  const drawn = parts.filter((each) => !grids.includes(each) && !/patch_1$|spine/.test(each.id));
  const panes = [true, false].map((behind) => {
    const pane = made("svg", { x: left, y: top, width: right - left, height: bottom - top, preserveAspectRatio: "none" });
    axes.insertBefore(pane, behind ? grids[0] : null);
    pane.append(...drawn.filter((each) => parts.indexOf(each) < parts.indexOf(grids[0]) === behind));
    for (const each of pane.querySelectorAll("path")) each.setAttribute("vector-effect", "non-scaling-stroke");
    return pane;
  });
  const ticks = axes.querySelectorAll('[id*="xtick_"], [id*="ytick_"]');
  const unstretched = panes.flatMap((pane) => [...pane.querySelectorAll("use, text")]).map((each) => [
    each, ...["x", "y", "transform"].map((name) => each.getAttribute(name) ?? ""),
  ]);
  const ours = made("g", { "font-size": 9, fill: "var(--muted)" }), guide = made("g", {});
  const span = made("rect", { fill: "var(--text)", opacity: 0.12, visibility: "hidden" });
  axes.insertBefore(ours, panes[1]);
  axes.append(guide, span);
  const values = document.createElement("output"), all = document.createElement("button");
  values.hidden = all.hidden = true;
  all.textContent = "Show all";
  figure.append(values, all);

  // from a value to its share of a range, [low, high, logarithmic], and back
  const forth = ([low, high, log], value) => (log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
  const back = ([low, high, log], share) => (log ? low * (high / low) ** share : low + share * (high - low));
  const px = (value, range = view.x) => left + forth(range, value) * (right - left);
  const py = (value, range = view.y) => bottom - forth(range, value) * (bottom - top);

  function draw() {
    const [x0, x1] = view.x.slice(0, 2).map((value) => px(value, whole.x));
    const [y1, y0] = view.y.slice(0, 2).map((value) => py(value, whole.y));
    const near = view !== whole, across = (x1 - x0) / (right - left), down = (y1 - y0) / (bottom - top);
    for (const pane of panes) {
      pane.setAttribute("viewBox", [x0, y0, x1 - x0, y1 - y0].join(" "));
      pane.style.overflow = near ? "hidden" : "visible"; // markers may stand on the frame
    }
    for (const [each, x, y, transform] of unstretched) {
      const named = each.tagName === "text"; // the name of a stage, which stays at the top of the frame
      each.setAttribute("x", near ? 0 : x);
      each.setAttribute("y", near ? 0 : y);
      const to = near ? `translate(${x} ${named ? y0 + (y - top) * down : y}) scale(${across} ${down})` : transform;
      each.setAttribute("transform", to);
    }
    for (const each of ticks) each.style.display = near ? "none" : "";
    ours.replaceChildren();
    all.hidden = !near;
    if (!near) return;
    for (const value of nice(view.x, 6, chart.integers)) {
      ours.append(ruled(`M${px(value)} ${top}V${bottom}`), word(short(value), px(value), bottom + 13, "middle"));
    }
    for (const value of nice(view.y, 5, false)) {
      ours.append(ruled(`M${left} ${py(value)}H${right}`), word(short(value), left - 5, py(value) + 3, "end"));
    }
  }

  function look(low, high) {
    [low, high] = [Math.max(low, whole.x[0]), Math.min(high, whole.x[1])];
    const within = (line, i) => line.y[i] !== null && line.x[i] >= low && line.x[i] <= high;
    const seen = chart.lines.flatMap((line) => line.y.filter((_, i) => within(line, i)));
    if (!seen.length) return;
    const [least, most] = [Math.min(...seen), Math.max(...seen)].map((value) => forth(whole.y, value));
    const margin = Math.max(0.06 * (most - least), 0.005);
    const edges = [least - margin, most + margin].map((share) => back(whole.y, Math.min(Math.max(share, 0), 1)));
    view = low === whole.x[0] && high === whole.x[1] ? whole : { x: [low, high, whole.x[2]], y: [...edges, whole.y[2]] };
    draw();
  }

  function read(value) {
    at = value;
    guide.replaceChildren();
    values.replaceChildren();
    values.hidden = value === null;
    if (value === null) return;
    guide.append(made("path", { d: `M${px(value)} ${top}V${bottom}`, stroke: "var(--muted)", "stroke-width": 0.8 }));
    values.append(text("b", `${long(value)} ${chart.unit}`));
    for (const line of chart.lines) {
      const i = nearest(line.x, value);
      if (i < 0 || line.y[i] === null || (!line.dense && Math.abs(px(line.x[i]) - px(value)) > 4)) continue;
      values.append(text("span", `${line.name}: ${long(line.y[i])}`, line.color));
      const [x, y] = [px(line.x[i]), py(line.y[i])];
      if (y > top - 1 && y < bottom + 1) guide.append(made("circle", { cx: x, cy: y, r: 2.6, fill: line.color }));
    }
    put_values();
  }

  // puts the values beside the guide, where they can be seen
  function put_values() {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width, x = px(at) * scale;
    const place = px(at) > (left + right) / 2 ? x - values.offsetWidth - 8 : x + 8;
    const most = figure.scrollLeft + figure.clientWidth - values.offsetWidth;
    values.style.left = `${Math.max(figure.scrollLeft, Math.min(place, most))}px`;
    values.style.top = `${top * scale + 4}px`;
  }

  const under = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return back(view.x, Math.min(Math.max((point.x - left) / (right - left), 0), 1));
  };
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.pointerType !== "mouse") return; // a finger scrolls
    began = under(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    const value = under(event);
    read(points[nearest(points, value)]);
    if (began === null) return;
    const [a, b] = [px(Math.min(began, value)), px(Math.max(began, value))];
    put(span, { x: a, y: top, width: b - a, height: bottom - top, visibility: "visible" });
  });
  svg.addEventListener("pointerup", (event) => {
    span.setAttribute("visibility", "hidden");
    const [low, high] = [began, under(event)].sort((a, b) => a - b), dragged = began !== null && px(high) - px(low) > 5;
    began = null;
    if (dragged) show(low, high);
  });
  svg.addEventListener("pointerleave", () => began === null && read(null));
  svg.addEventListener("dblclick", (event) => (view === whole ? show(...around(under(event), 0.25)) : show(...whole.x.slice(0, 2))));
  all.addEventListener("click", () => {
    show(...whole.x.slice(0, 2));
    figure.focus();
  });
  figure.addEventListener("blur", () => read(null));
  figure.addEventListener("scroll", () => at !== null && put_values());
  figure.addEventListener("keydown", (event) => {
    const here = at ?? (view.x[0] + view.x[1]) / 2;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") read(next_to(here, event.key === "ArrowRight" ? 1 : -1));
    else if (event.key === "+") show(...around(here, 0.25), at);
    else if (event.key === "-") show(...around(here, 1), at);
    else if (event.key === "Escape") show(...whole.x.slice(0, 2));
    else return;
    event.preventDefault();
    const share = px(at ?? here) / svg.viewBox.baseVal.width;
    figure.scrollLeft = share * figure.scrollWidth - figure.clientWidth / 2;
  });

  function show(low, high, reading = null) {
    look(low, high);
    read(reading);
  }

  // a span around a place, with that share of the present one on each side
  function around(place, share) {
    const half = share * (view.x[1] - view.x[0]);
    return [place - half, place + half];
  }

  function next_to(place, by) {
    const i = nearest(points, place), next = points[at === null ? i : i + by];
    return next === undefined || next < view.x[0] || next > view.x[1] ? points[i] : next;
  }

  draw();
}

function made(name, attributes) {
  return put(document.createElementNS(document.querySelector("svg").namespaceURI, name), attributes);
}

function put(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function ruled(d) {
  return made("path", { d, stroke: "var(--grid)", "stroke-width": 0.6 });
}

function word(content, x, y, anchor) {
  const element = made("text", { x, y, "text-anchor": anchor });
  element.textContent = content;
  return element;
}

function text(name, content, color) {
  const element = document.createElement(name);
  element.textContent = content;
  if (color) element.style.setProperty("--own", color);
  return element;
}

function nearest(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return low > 0 && value - sorted[low - 1] < sorted[low] - value ? low - 1 : low;
}

function nice([low, high, logarithmic], count, integers) {
  if (logarithmic && high / low > 10) {
    const powers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) powers.push(10 ** power);
    return powers.flatMap((power) => [power, 2 * power, 5 * power]).filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max([1, 2, 5, 10].find((each) => each * power >= rough) * power, integers ? 1 : 0);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function long(value) {
  return Math.abs(value) >= 1e7 ? short(value) : value.toLocaleString("en", { maximumSignificantDigits: 7 });
}

function short(value) {
  for (const [power, prefix] of [[18, "E"], [15, "P"], [12, "T"], [9, "G"], [6, "M"]]) {
    if (Math.abs(value) >= 10 ** power) return `${+(value / 10 ** power).toPrecision(4)} ${prefix}`;
  }
  return value.toLocaleString("en", { maximumSignificantDigits: 5 });
}
