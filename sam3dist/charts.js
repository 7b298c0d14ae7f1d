// Draws the charts of a search from the JSON beside it, and shows the note of the point under the pointer or finger.
// A trial that is pointed at in one chart is drawn over in all of them.
"use strict";
(() => {
  const { charts, trials } = JSON.parse(document.getElementById("charts").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;
  const boxes = charts.map((chart) => document.getElementById(`chart-${chart.name}`));
  const notes = charts.map((chart) => new Map([...Object.entries(trials), ...Object.entries(chart.notes)]));
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  function element(kind, text) {
    const made = document.createElement(kind);
    made.textContent = text; // never markup: names and values come from files
    return made;
  }

  function tell(note, box, point) {
    const table = document.createElement("table");
    for (const [name, value] of note.rows) {
      const row = table.insertRow();
      row.append(element("td", name), element("td", value));
    }
    tip.replaceChildren(element("b", note.title), table);
    tip.hidden = false;
    const frame = box.getBoundingClientRect();
    const { x0, x1, y0 } = point.bbox;
    tip.classList.toggle("above", frame.top + y0 > innerHeight / 2); // on a phone it lies at the other end
    const right = frame.left + x1 + 12;
    const left = right + tip.offsetWidth < innerWidth - 8 ? right : frame.left + x0 - 12 - tip.offsetWidth;
    const top = Math.min(frame.top + y0 - 16, innerHeight - tip.offsetHeight - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  }

  let chosen;
  function choose(trial) {
    if (trial === chosen) return;
    chosen = trial;
    boxes.forEach((box, place) => {
      const last = box.data.length - 1;
      const xs = [];
      const ys = [];
      for (const trace of box.data.slice(0, last)) {
        (trace.customdata ?? []).forEach((key, index) => {
          if (key === null || trial === undefined || notes[place].get(key)?.trial !== trial) return;
          xs.push(trace.x[index]);
          ys.push(trace.y[index]);
        });
      }
      const ink = getComputedStyle(box).color; // of the page, which may have turned dark
      const update = { x: [xs], y: [ys], "line.color": ink, "marker.color": ink };
      if (xs.length || box.data[last].x.length) Plotly.restyle(box, update, [last]);
    });
  }

  function forget() {
    tip.hidden = true;
    choose(undefined);
  }

  charts.forEach((chart, place) => {
    const box = boxes[place];
    const over = { type: "scatter", x: [], y: [], mode: "lines+markers", hoverinfo: "skip" };
    const look = { line: { width: 3 }, marker: { size: 11, symbol: "circle-open", line: { width: 2.5 } } };
    const layout = { ...chart.figure.layout, dragmode: touch ? false : "zoom" };
    const config = { responsive: true, displayModeBar: false, doubleClick: "reset" };
    Plotly.newPlot(box, [...chart.figure.data, { ...over, ...look }], layout, config).then(() => {
      box.on("plotly_hover", ({ points: [point] }) => {
        const note = notes[place].get(point.customdata);
        if (note === undefined) return;
        tell(note, box, point);
        choose(note.trial);
      });
      box.on("plotly_unhover", forget);
    });
  });
  addEventListener("scroll", forget, { passive: true, capture: true });
})();
