// Charts: a mark that follows the pointer or the arrow keys, and the values at its step.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg");
  const { steps, x, y, shown } = JSON.parse(chart.querySelector("script").textContent);
  const mark = svg.querySelector(".mark");
  const dots = [...svg.querySelectorAll(".at")];
  const step = chart.querySelector(".step");
  const values = [...chart.querySelectorAll(".entry b")];
  const last = values.map((value) => value.textContent);
  let at = steps.length - 1;

  const show = (index) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    step.textContent = `step ${steps[at]}`;
    mark.setAttribute("x1", x[at]);
    mark.setAttribute("x2", x[at]);
    mark.setAttribute("visibility", "visible");
    dots.forEach((dot, series) => {
      const height = y[series][at];
      dot.setAttribute("visibility", height === null ? "hidden" : "visible");
      if (height !== null) {
        dot.setAttribute("cx", x[at]);
        dot.setAttribute("cy", height);
      }
      values[series].textContent = shown[series][at] || "–";
    });
  };
  const leave = () => {
    step.textContent = "";
    mark.setAttribute("visibility", "hidden");
    dots.forEach((dot, series) => {
      dot.setAttribute("visibility", "hidden");
      values[series].textContent = last[series];
    });
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let nearest = 0;
    x.forEach((pixel, index) => {
      if (Math.abs(pixel - place) < Math.abs(x[nearest] - place)) nearest = index;
    });
    show(nearest);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("focus", () => show(at));
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 };
    if (event.key in moves) {
      show(moves[event.key]);
      event.preventDefault();
    }
  });
}

// Pictures of credit: one stop of the Tab key each, arrow keys within, and a panel with the values of a token.
for (const picture of document.querySelectorAll(".picture")) {
  const tokens = [...picture.querySelectorAll(".flow .token")];
  const panel = picture.querySelector(".panel");
  if (!tokens.length) continue;
  tokens[0].tabIndex = 0;

  const describe = (token) => {
    const { id, logp, advantage, dropped } = token.dataset;
    const { number, student, teacher, difference } = token.parentElement.parentElement.dataset;
    const isStudent = token.classList.contains("student");
    const facts = [[isStudent ? "student token" : "teacher token", token.textContent]];
    if (isStudent) facts.push(["advantage", advantage]);
    facts.push(["log p", logp], ["id", id]);
    if (dropped) facts.push(["not trained on:", dropped]);
    if (token.classList.contains("leaves")) facts.push(["leaves", "the student's own tokenization"]);
    if (number) facts.push(["chunk", number], ["L_S", student], ["L_T", teacher], ["L_T − L_S", difference]);
    else facts.push(["in", "no chunk"]);
    const list = document.createElement("dl");
    facts.forEach(([name, value], index) => {
      const item = list.appendChild(document.createElement("div"));
      item.appendChild(document.createElement("dt")).textContent = name;
      const place = item.appendChild(document.createElement("dd"));
      (index ? place : place.appendChild(document.createElement("code"))).textContent = value;
    });
    panel.replaceChildren(list);
  };
  const go = (token) => {
    if (!token) return;
    tokens.forEach((other) => (other.tabIndex = -1));
    token.tabIndex = 0;
    token.focus();
  };
  const next = (token, by) => {
    const side = token.classList.contains("student") ? "student" : "teacher";
    const row = tokens.filter((other) => other.classList.contains(side));
    return row[row.indexOf(token) + by];
  };
  const across = (token, side) => token.closest(".chunk").querySelector(`.token.${side}`);

  picture.addEventListener("pointerover", (event) => {
    const token = event.target.closest(".flow .token");
    if (token) describe(token);
  });
  picture.addEventListener("focusin", (event) => {
    const token = event.target.closest(".flow .token");
    if (token) describe(token);
  });
  picture.addEventListener("click", (event) => go(event.target.closest(".flow .token")));
  picture.addEventListener("keydown", (event) => {
    const token = event.target.closest(".flow .token");
    if (!token) return;
    const moves = {
      ArrowRight: () => next(token, 1),
      ArrowLeft: () => next(token, -1),
      ArrowDown: () => across(token, "teacher"),
      ArrowUp: () => across(token, "student"),
      Home: () => tokens[0],
      End: () => tokens[tokens.length - 1],
    };
    if (event.key in moves) {
      go(moves[event.key]());
      event.preventDefault();
    }
  });
}
