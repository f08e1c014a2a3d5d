// A sentence at the foot of the page, for a few seconds; it may offer one thing to do.

import { h } from "./dom.js";

const SECONDS = 8;
let box;

export function notice(sentence, action, act) {
	box ??= document.body.appendChild(h("div", { class: "notice", role: "status" }));
	clearTimeout(box.timer);
	const hide = () => box.replaceChildren();
	const button = action && h("button", { type: "button", class: "quiet", onclick: () => (hide(), act()) }, action);
	box.replaceChildren(h("div", {}, sentence, button));
	box.timer = setTimeout(hide, SECONDS * 1000);
}
