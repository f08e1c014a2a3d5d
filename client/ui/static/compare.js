// <lora-compare>: the same question to two models at once, side by side; a vote; the prompt set as a batch.

import { post } from "./api.js";
import { Batch } from "./batch.js";
import { told } from "./told.js";
import { Composer } from "./composer.js";
import { h, iconButton } from "./dom.js";
import { follow } from "./follow.js";
import { notice } from "./notice.js";
import * as settings from "./settings.js";
import { copyButton, show, turn, write } from "./turn.js";

const SIDES = ["left", "right"];
const VERDICTS = { left: "Left is better", tie: "A tie", neither: "Both are bad", right: "Right is better" };

class Compare extends HTMLElement {
	connectedCallback() {
		if (this.sides) return;
		this.sides = SIDES.map((name) => ({ name, messages: [], place: h("div", { class: "transcript", id: name, role: "log", tabindex: 0, "aria-label": `Answers on the ${name}` }) }));
		for (const side of this.sides) side.toEnd = follow(side.place);
		this.composer = new Composer("compare-question", "Message to both", "Write a message to both", { onSend: (text) => this.ask(text), onStop: () => this.stop() });
		this.judge = h("div", { class: "judge", role: "group", "aria-label": "Which answer is better?" });
		this.single = h("div", { class: "talk wide" }, h("div", { class: "pair" }, ...this.sides.map(({ place }) => place)), this.judge, this.composer.view);
		this.batch = new Batch();
		const modes = { Chat: this.single, "Prompt set": this.batch.view };
		const pick = (chosen) => {
			for (const [name, view] of Object.entries(modes)) view.hidden = name !== chosen;
			this.clearing.hidden = chosen !== "Chat";
			if (chosen !== "Chat") this.batch.begin();
			for (const button of this.modes.children) button.setAttribute("aria-pressed", button.textContent === chosen);
		};
		this.modes = h(
			"div",
			{ class: "modes", role: "group", "aria-label": "What to compare" },
			...Object.keys(modes).map((name) => h("button", { type: "button", onclick: () => pick(name) }, name)),
		);
		this.clearing = iconButton("trash", "Clear both", () => this.clear());
		this.append(h("div", { class: "bar" }, this.modes, this.clearing), this.single, this.batch.view);
		pick("Chat");
		this.clear();
	}

	/** Forget both conversations: they are compared turn by turn. */
	async clear() {
		await this.stop();
		this.judge.replaceChildren();
		for (const side of this.sides) {
			side.messages = [];
			side.place.replaceChildren(h("p", { class: "welcome small" }, `The answer of the model picked on the ${side.name} appears here.`));
		}
	}

	async ask(text) {
		this.judge.replaceChildren();
		this.abort = new AbortController();
		this.composer.setBusy(true);
		this.running = Promise.all(this.sides.map((side) => this.answer(side, text)));
		await this.running;
		this.running = this.abort = null;
		this.composer.setBusy(false);
		this.offerVote();
	}

	async stop() {
		this.abort?.abort();
		await this.running;
	}

	async answer(side, text) {
		if (!side.messages.length) side.place.replaceChildren();
		const question = { role: "user", content: text };
		const message = { role: "assistant", content: "" };
		side.messages.push(question);
		const asked = settings.withSystem(told(side.messages));
		const view = turn(message, "", [copyButton(() => message.content)]);
		side.place.append(turn(question, "", []), view);
		side.messages.push(message);
		side.toEnd(true);
		Object.assign(side, { model: settings.get(side.name) ?? "", asked, view, message });
		try {
			const end = await write(view, message, { model: side.model, messages: asked, sampling: settings.sampling() }, this.abort.signal, () => side.toEnd());
			side.model = end?.model ?? side.model; // the version that answered
			side.html = view.querySelector(".body").innerHTML;
		} catch (error) {
			message.error = { sentence: error.message, next_step: "Change it under Settings, then ask again." };
			show(view, message, "");
		}
		side.toEnd();
	}

	offerVote() {
		const areWhole = this.sides.every(({ message }) => message.content);
		if (!areWhole) return;
		const votes = Object.entries(VERDICTS).map(([verdict, words]) => h("button", { type: "button", onclick: () => this.vote(verdict) }, words));
		const mark = h("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => this.markDifferences(mark) }, "Show differences");
		this.judge.replaceChildren(...votes, mark);
	}

	async vote(verdict) {
		const [left, right] = this.sides;
		const body = { prompt: left.asked, models: [left.model, right.model], answers: [left.message.content, right.message.content], verdict, sampling: settings.sampling() };
		try {
			const { file } = await post("votes", body);
			this.judge.querySelectorAll("button:not(.quiet)").forEach((button) => button.remove());
			this.judge.prepend(h("span", { class: "small", role: "status" }, `${VERDICTS[verdict]}: written to ${file}.`));
		} catch (error) {
			notice(`${error.sentence} ${error.next_step}`);
		}
	}

	/** Show both texts with their own words marked, or as they were. */
	async markDifferences(button) {
		const isOn = button.getAttribute("aria-pressed") === "false";
		const [left, right] = this.sides;
		try {
			const marked = isOn && (await post("differences", { left: left.message.content, right: right.message.content }));
			for (const side of this.sides) {
				const body = side.view.querySelector(".body");
				body.classList.toggle("marked", isOn);
				body.innerHTML = isOn ? marked[side.name] : side.html;
			}
			button.setAttribute("aria-pressed", isOn);
			button.textContent = isOn ? `Hide differences (${Math.round(marked.common * 100)} % in common)` : "Show differences";
		} catch (error) {
			notice(`${error.sentence} ${error.next_step}`);
		}
	}
}

customElements.define("lora-compare", Compare);
