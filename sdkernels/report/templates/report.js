"use strict";
(() => {
  // Token numbers: hover, tap, or arrow keys inside a rollout.
  const tip = document.getElementById("tip");
  const rows = [
    ["logp", "student log-prob"], ["teacher_logp", "teacher log-prob"], ["gap", "gap"],
    ["entropy", "student entropy"], ["teacher_entropy", "teacher entropy"], ["direction", "direction"],
  ];
  const loaded = new Map();
  let current = null;

  const numbers = (box) => {
    const id = box.dataset.rollout;
    if (!loaded.has(id)) {
      const tokens = Array.from(box.children);
      loaded.set(id, {
        tokens,
        index: new Map(tokens.map((token, at) => [token, at])),
        columns: JSON.parse(document.getElementById("rollout-" + id).textContent),
      });
    }
    return loaded.get(id);
  };

  const told = (key, value) => {
    const sign = value < 0 ? "\u2212" : key === "gap" || key === "direction" ? "+" : "";
    const shown = sign + Math.abs(value).toFixed(Math.abs(value) < 0.1 ? 3 : 2);
    if (key === "logp" || key === "teacher_logp") {
      const chance = 100 * Math.exp(value);
      return shown + " nats (" + (chance < 0.01 ? "<0.01" : chance.toPrecision(3)) + " %)";
    }
    if (key === "gap") return shown + " nats" + (value > 0 ? ", keep" : value < 0 ? ", change" : "");
    if (key === "direction") return shown + (value > 0 ? ", pull" : value < 0 ? ", push" : "");
    return shown + " nats";
  };

  const show = (token) => {
    const data = numbers(token.parentElement);
    const at = data.index.get(token);
    if (current) current.classList.remove("at");
    current = token;
    token.classList.add("at");
    tip.replaceChildren();
    const name = document.createElement("b");
    name.textContent = "\u201c" + token.textContent.replace(/ /g, "\u00b7").replace(/\u21b5\n/g, "\u21b5").replace(/\t/g, "\u21e5") + "\u201d";
    tip.append(name, " token " + (at + 1) + (token.querySelector("u") ? ", epistemic marker" : ""));
    const table = document.createElement("table");
    for (const [key, title] of rows) {
      const column = data.columns[key];
      if (!column) continue;
      const row = table.insertRow();
      row.insertCell().textContent = title;
      row.insertCell().textContent = column[at] === null ? "\u2013" : told(key, column[at]);
    }
    tip.append(table);
    tip.hidden = false;
    const place = token.getClientRects()[0] || token.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const below = place.bottom + 8 + size.height < innerHeight;
    tip.style.left = Math.max(8, Math.min(place.left, innerWidth - size.width - 8)) + "px";
    tip.style.top = (below ? place.bottom + 8 : Math.max(8, place.top - size.height - 8)) + "px";
  };

  const hide = () => {
    tip.hidden = true;
    if (current) current.classList.remove("at");
    current = null;
  };

  const tokenOf = (target) => (target.closest ? target.closest(".tokens > i") : null);
  for (const box of document.querySelectorAll(".tokens")) {
    box.addEventListener("mouseover", (event) => { const token = tokenOf(event.target); if (token) show(token); });
    box.addEventListener("mouseleave", hide);
    box.addEventListener("click", (event) => { const token = tokenOf(event.target); if (token) show(token); });
    box.addEventListener("blur", hide);
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const tokens = numbers(box).tokens;
      const at = current && current.parentElement === box ? numbers(box).index.get(current) : -1;
      const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      const token = tokens[Math.max(0, Math.min(tokens.length - 1, next))];
      token.scrollIntoView({ block: "nearest" });
      show(token);
    });
  }
  addEventListener("scroll", (event) => { if (event.target === document) hide(); }, { passive: true });

  // Legend: point at a condition to see its lines alone, press it to keep them.
  const panels = document.querySelector(".panels");
  const keys = Array.from(document.querySelectorAll(".key"));
  const kept = new Set();
  const pick = (hovered) => {
    const picked = hovered === null ? kept : new Set([...kept, hovered]);
    panels.classList.toggle("picking", picked.size > 0);
    for (const series of panels.querySelectorAll(".series")) {
      series.classList.toggle("picked", picked.has(series.dataset.run));
    }
  };
  for (const key of keys) {
    const run = key.dataset.run;
    key.addEventListener("mouseenter", () => pick(run));
    key.addEventListener("mouseleave", () => pick(null));
    key.addEventListener("click", () => {
      if (!kept.delete(run)) kept.add(run);
      key.setAttribute("aria-pressed", String(kept.has(run)));
      pick(null);
    });
  }
})();
