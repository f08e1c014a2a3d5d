// What Gradio's events call on (`await lorachat`), and the elements that the page is made of.

import "./chat.js";
import "./compare.js";
import "./panel.js";

export * as settings from "./settings.js";
export * as theme from "./theme.js";
