// Makes elements: h("button", {class: "quiet", onclick: f}, "Text", child). Text is never read as HTML.

export function h(tag, attributes = {}, ...children) {
	const element = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes)) {
		if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
		else if (name === "html") element.innerHTML = value; // from this page's own server only
		else if (value === true) element.setAttribute(name, "");
		else if (value !== false && value != null) element.setAttribute(name, value);
	}
	element.append(...children.filter((child) => child != null));
	return element;
}

const PATHS = {
	copy: "M9 9h11v11H9zM5 15H4V4h11v1",
	edit: "M4 20l1-5L16 4l4 4L9 19zM14 6l4 4",
	retry: "M20 11a8 8 0 1 0-2 6M20 4v7h-7",
	undo: "M9 14L4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
	trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
	plus: "M12 5v14M5 12h14",
	send: "M12 20V5M5 12l7-7 7 7",
	stop: "M7 7h10v10H7z",
	list: "M4 6h16M4 12h16M4 18h16",
	download: "M12 4v11M7 11l5 5 5-5M5 20h14",
	upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
};

export function icon(name) {
	const svg = h("span", {
		class: "icon",
		"aria-hidden": "true",
		html: `<svg viewBox="0 0 24 24"><path d="${PATHS[name]}"/></svg>`,
	});
	return svg;
}

/** A button with an icon; its name is for screen readers and as a tooltip. */
export function iconButton(name, label, onclick, more = {}) {
	return h("button", { type: "button", class: "tool", title: label, "aria-label": label, onclick, ...more }, icon(name));
}
