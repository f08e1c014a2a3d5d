// Light or dark: the system's wish, until the reader chooses. The choice is kept in this browser.

const NAME = "lorachat.theme";

export function toggle() {
	const dark = document.body.classList.toggle("dark");
	document.documentElement.style.colorScheme = dark ? "dark" : "light";
	localStorage.setItem(NAME, dark ? "dark" : "light");
	dispatchEvent(new Event("lorachat:theme"));
}

const chosen = localStorage.getItem(NAME);
if (chosen) {
	const apply = () => document.body.classList.toggle("dark", chosen === "dark");
	// Gradio follows the system once it starts; the reader's choice comes after it.
	new MutationObserver((_, observer) => {
		if (document.querySelector(".gradio-container #theme")) {
			apply();
			observer.disconnect();
		}
	}).observe(document.body, { childList: true, subtree: true });
	apply();
}
