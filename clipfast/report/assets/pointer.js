// Shows the values under the pointer.
for (const plot of document.querySelectorAll(".plot")) {
  const area = plot.querySelector(".area");
  const series = JSON.parse(plot.dataset.points);
  let line, tip;
  const leave = () => { line?.remove(); tip?.remove(); line = tip = undefined; };
  const move = (event) => {
    const box = area.getBoundingClientRect();
    const x = (100 * (event.clientX - box.left)) / box.width;
    const nearest = ({ at }) =>
      at.reduce((best, [px], i) => (Math.abs(px - x) < Math.abs(at[best][0] - x) ? i : best), 0);
    if (!line) {
      line = area.appendChild(document.createElement("div"));
      tip = area.appendChild(document.createElement("div"));
      line.className = "pointer";
      tip.className = "tip";
    }
    const first = nearest(series[0]);
    const place = series[0].at[first][0];
    line.style.left = `${place}%`;
    tip.replaceChildren(`${plot.dataset.x} ${series[0].words[first][0]}`);
    for (const one of series) {
      const value = document.createElement("b");
      value.textContent = one.words[nearest(one)][1];
      tip.append(document.createElement("br"), series.length > 1 ? `${one.name} ` : "", value);
    }
    tip.style.left = place < 60 ? `calc(${place}% + 10px)` : "";
    tip.style.right = place < 60 ? "" : `calc(${100 - place}% + 10px)`;
  };
  plot.addEventListener("pointermove", move);
  plot.addEventListener("pointerdown", move);
  plot.addEventListener("pointerleave", leave);
}
