// The settings as the controls show them. They are kept in the page's address, so that a link shows a
// colleague the same; the API key is kept in this browser, and in no address.

const KEY = "lorachat.key";
const PICKERS = ["model", "left", "right"];
const values = {};
const defaults = {};
let presets = {};
const address = new URLSearchParams(location.search);

export const get = (name) => values[name];
export const key = () => localStorage.getItem(KEY) ?? "";

/** Take a new value; gives the name of the preset that all values now make. */
export function set(name, value) {
	values[name] = value;
	// A picker's first model is the server's choice, and no wish of the reader.
	if (!(name in defaults) && value != null) defaults[name] = address.has(name) ? undefined : value;
	showInAddress();
	dispatchEvent(new CustomEvent("lorachat:settings", { detail: name }));
	const matches = (wanted) => Object.entries(wanted).every(([setting, number]) => values[setting] === number);
	return Object.keys(presets).find((preset) => matches(presets[preset])) ?? "Custom";
}

export function setKey(value) {
	if (value) localStorage.setItem(KEY, value.trim());
	else localStorage.removeItem(KEY);
}

/** What the controls are to show: what the address says, else what they show; and the key. */
export function restore(names, shown, known) {
	presets = known;
	names.forEach((name, index) => {
		defaults[name] = shown[index];
		const wanted = address.get(name);
		if (wanted === null) values[name] = shown[index];
		else values[name] = typeof shown[index] === "number" && !Number.isNaN(+wanted) ? +wanted : wanted;
	});
	return [...names.map((name) => values[name]), key()];
}

/** The values that a look at the server goes with; before the first, the address picks the models. */
export function beforeRefresh(status) {
	const picked = Object.fromEntries(PICKERS.map((name) => [name, values[name] ?? address.get(name)]));
	return [status, picked, key()];
}

/** What the controls are to show once a preset was picked. */
export function preset(chosen, names, shown) {
	return names.map((name, index) => presets[chosen]?.[name] ?? shown[index]);
}

/** The settings as the page's server wants them. Throws an Error with a sentence if one cannot be read. */
export function sampling() {
	const seed = String(values.seed ?? "").trim();
	if (!/^(-?\d+)?$/.test(seed)) throw new Error(`The seed is a whole number or empty, and not “${seed}”.`);
	const lines = String(values.stop ?? "").split("\n").filter((line) => line !== "");
	return {
		temperature: values.temperature,
		top_p: values.top_p,
		max_tokens: values.max_tokens,
		top_k: values.top_k,
		min_p: values.min_p,
		repetition_penalty: values.repetition_penalty,
		seed: seed || null, // as text: numbers of JavaScript lose digits beyond 2^53
		stop: lines.map((line) => line.replaceAll("\\n", "\n")),
	};
}

/** The messages with the system prompt before them, if there is one. */
export function withSystem(messages) {
	const system = String(values.system ?? "");
	return system.trim() ? [{ role: "system", content: system }, ...messages] : messages;
}

function showInAddress() {
	const query = new URLSearchParams();
	for (const [name, value] of Object.entries(values)) {
		if (value != null && value !== defaults[name]) query.set(name, value);
	}
	for (const name of PICKERS) {
		// Not known yet: the address still holds the wish.
		if (!(name in values) && address.has(name)) query.set(name, address.get(name));
	}
	const search = query.size ? `?${query}` : "";
	if (search !== location.search) history.replaceState(history.state, "", location.pathname + search);
}
