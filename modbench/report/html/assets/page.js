"use strict";
// State of the page in the hash of its address: KEY=VALUE pairs, and at=ID for a place on the page.
const state = (() => {
  const text = location.hash.slice(1);
  const pairs = new URLSearchParams(text.includes("=") ? text : text ? "at=" + text : "");
  const write = (push) => {
    const hash = pairs.toString();
    const address = location.pathname + location.search + (hash ? "#" + hash : "");
    if (push) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  };
  return {
    get: (key) => pairs.get(key),
    set(key, value, push = false) {
      if (value === "" || value === null || value === undefined) pairs.delete(key);
      else pairs.set(key, value);
      write(push);
    },
  };
})();

const byId = (id) => document.getElementById(id);
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
function dataOf(id) {
  const element = byId(id);
  return element ? JSON.parse(element.textContent) : null;
}
document.documentElement.classList.add("js");

// Places: a link to a section.
function go(id, push) {
  const target = byId(id);
  if (!target) return;
  state.set("at", id, push);
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}
document.addEventListener("click", (event) => {
  const link = event.target.closest && event.target.closest('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  go(link.getAttribute("href").slice(1), true);
});
const goToState = () => go(state.get("at"), false);
window.addEventListener("popstate", () => go(new URLSearchParams(location.hash.slice(1)).get("at"), false));
window.addEventListener("load", () => setTimeout(goToState, 30));

// Meanings of columns: a tap or Enter toggles them by the page itself; hover and focus show them.
for (const button of document.querySelectorAll(".info")) {
  const meaning = byId(button.getAttribute("popovertarget"));
  if (!meaning || !meaning.showPopover) continue;
  const show = () => {
    if (!meaning.matches(":popover-open")) meaning.showPopover();
    const box = button.getBoundingClientRect();
    const width = meaning.offsetWidth;
    const left = Math.max(8, Math.min(box.left - 12, document.documentElement.clientWidth - width - 8));
    const below = box.bottom + 8 + meaning.offsetHeight < innerHeight;
    meaning.style.margin = "0";
    meaning.style.left = left + "px";
    meaning.style.top = (below ? box.bottom + 8 : Math.max(8, box.top - meaning.offsetHeight - 8)) + "px";
    meaning.style.right = meaning.style.bottom = "auto";
  };
  const hide = () => { if (meaning.matches(":popover-open")) meaning.hidePopover(); };
  const head = button.closest("th");
  button.removeAttribute("popovertarget");
  button.setAttribute("aria-describedby", meaning.id);
  button.addEventListener("click", (event) => { event.stopPropagation(); show(); });
  button.addEventListener("focus", show);
  button.addEventListener("blur", hide);
  button.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  head.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(); });
  head.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
}
