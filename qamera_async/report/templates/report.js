"use strict";
(() => {
  const sheet = document.querySelector(".sheet");
  const tools = document.querySelector(".tools");
  const search = tools.querySelector("input");
  const shown = tools.querySelector("output");
  const nothing = document.querySelector(".nothing");
  const buttons = [...tools.querySelectorAll("button")];
  const cards = [...sheet.children];
  let texts = null;

  const show = () => {
    const group = sheet.dataset.show;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !texts) {
      texts = cards.map((card) =>
        [...card.querySelectorAll(".key")].map((key) => key.textContent).join("\n").toLowerCase());
    }
    let number = 0;
    cards.forEach((card, place) => {
      const found = words.every((word) => texts[place].includes(word));
      if (card.hidden === found) card.hidden = !found;
      if (found && (group === "all" || card.classList.contains(group))) number += 1;
    });
    shown.textContent = `${number.toLocaleString("en")} shown`;
    nothing.hidden = number > 0;
  };

  const choose = () => {
    const wanted = location.hash.slice(1);
    const chosen = buttons.find((button) => button.dataset.show === wanted) || buttons[0];
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
    sheet.dataset.show = chosen.dataset.show;
    show();
  };

  const play = (link) => {
    const video = document.createElement("video");
    video.controls = video.autoplay = video.playsInline = true;
    video.src = link.href;
    video.setAttribute("aria-label", link.getAttribute("aria-label"));
    const frame = document.createElement("div");
    frame.className = "media";
    frame.append(video);
    video.addEventListener("error", () => {
      frame.className = "media none";
      frame.textContent = "This clip can't be played: it was moved, or isn't a video.";
    });
    link.replaceWith(frame);
    video.focus();
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      location.hash = button.dataset.show;
    });
  }
  addEventListener("hashchange", choose);
  search.addEventListener("input", show);
  sheet.addEventListener("click", (event) => {
    const link = event.target.closest("a.media");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      play(link);
    }
    const says = event.target.closest(".says");
    if (says) says.classList.toggle("open");
  });
  tools.hidden = false;
  choose();
})();
