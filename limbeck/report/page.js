"use strict";
// Everything here is a convenience: without it, hints are tooltips and the recipe is selected by hand.
for (const card of document.querySelectorAll("article.prompt")) {
  const hint = card.querySelector(".hint");
  const show = (event) => {
    const mark = event.target.closest("mark");
    for (const other of card.querySelectorAll("mark.on")) other.classList.remove("on");
    hint.textContent = mark ? mark.title : "";
    if (mark) mark.classList.add("on");
  };
  card.addEventListener("click", show);
  card.addEventListener("focusin", show);
  card.addEventListener("mouseover", show);
}
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
