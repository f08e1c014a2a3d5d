// <lora-panel src="panels/status" every="2">: HTML of this page's server, fetched when it comes into sight,
// and again every so many seconds while it stays there. What the reader has opened stays open.

import { get } from "./api.js";
import { h } from "./dom.js";

const RETRY_SECONDS = 3;

class Panel extends HTMLElement {
	connectedCallback() {
		this.shown = "";
		this.observer = new IntersectionObserver(([entry]) => {
			this.isVisible = entry.isIntersecting;
			if (this.isVisible) this.refresh();
		});
		this.observer.observe(this);
		if (!this.textContent) this.append(h("p", { class: "small" }, "Looking…"));
		this.addEventListener("toggle", (event) => this.openReport(event.target), true);
		addEventListener("lorachat:theme", this.onTheme);
	}

	disconnectedCallback() {
		this.observer.disconnect();
		clearTimeout(this.timer);
		removeEventListener("lorachat:theme", this.onTheme);
	}

	onTheme = () => this.querySelectorAll("details").forEach((details) => this.openReport(details));

	async refresh() {
		clearTimeout(this.timer);
		let wait = Number(this.getAttribute("every"));
		try {
			this.show(await (await get(this.getAttribute("src"))).text());
		} catch (error) {
			this.shown = "";
			this.replaceChildren(h("p", { class: "problem" }, h("strong", {}, error.sentence ?? String(error)), ` ${error.next_step ?? ""}`));
			wait ||= RETRY_SECONDS;
		}
		if (wait && this.isVisible) this.timer = setTimeout(() => this.refresh(), wait * 1000);
	}

	show(html) {
		if (html === this.shown) return;
		this.shown = html;
		const opened = [...this.querySelectorAll("details[open]")].map(({ dataset }) => dataset.key);
		this.innerHTML = html;
		for (const details of this.querySelectorAll("details")) details.open = opened.includes(details.dataset.key);
	}

	/** A report is loaded when its version is opened, in the colours of the page. */
	openReport(details) {
		const frame = details.open && details.querySelector("iframe");
		if (!frame) return;
		const url = new URL(`../${frame.dataset.src}`, import.meta.url);
		url.searchParams.set("scheme", document.body.classList.contains("dark") ? "dark" : "light");
		if (frame.src !== url.href) frame.src = url;
	}
}

customElements.define("lora-panel", Panel);
