// Talks to this page's own server. What goes wrong is an error of the form {sentence, next_step}.

import { key } from "./settings.js";

const AWAY = {
	sentence: "The web client's own server does not answer.",
	next_step: "Start it again (python -m client ui), then retry: the conversation is kept in this browser.",
};
const BROKEN = {
	sentence: "The connection to the web client ended before the answer did.",
	next_step: "Retry for a whole answer; what came so far is kept.",
};

const url = (path) => new URL(`../${path}`, import.meta.url);
const headers = () => (key() ? { "X-Lorachat-Key": key() } : {});

/** GET; a response whose status is 2xx. Throws {sentence, next_step}. */
export async function get(path) {
	return checked(await fetch(url(path), { headers: headers() }).catch(away));
}

/** POST as JSON; the answer's JSON. Throws {sentence, next_step}. */
export async function post(path, body) {
	return (await send(path, body)).json();
}

/**
 * Ask; gives the lines of client/ui/answer_lines.py, the last of which has `end`. Failures are such a line too.
 * Aborting the signal closes the connection, at which the server stops computing, and throws AbortError.
 */
export async function* answer(body, signal) {
	let reader;
	try {
		reader = (await send("answers", body, signal)).body.getReader();
	} catch (error) {
		if (signal.aborted) throw error;
		yield failed(error.sentence ? error : BROKEN);
		return;
	}
	const decoder = new TextDecoder();
	let pending = "";
	let ended = false;
	try {
		for (;;) {
			const { value, done } = await reader.read();
			if (done) break;
			const lines = (pending + decoder.decode(value, { stream: true })).split("\n");
			pending = lines.pop();
			for (const line of lines) {
				const parsed = JSON.parse(line);
				ended ||= Boolean(parsed.end);
				yield parsed;
			}
		}
	} catch (error) {
		if (signal.aborted) throw error;
	}
	if (!ended) yield failed(BROKEN);
}

async function send(path, body, signal) {
	const options = { method: "POST", headers: { "Content-Type": "application/json", ...headers() }, body: JSON.stringify(body), signal };
	return checked(await fetch(url(path), options).catch((error) => away(error, signal)));
}

function away(error, signal) {
	throw signal?.aborted ? error : AWAY;
}

async function checked(response) {
	if (response.ok) return response;
	const { detail } = await response.json().catch(() => ({}));
	if (typeof detail === "string") throw { sentence: detail, next_step: "" };
	const [first] = Array.isArray(detail) ? detail : [];
	throw {
		sentence: first ? `${first.loc?.at(-1)}: ${first.msg}.` : `The web client's server failed (${response.status}).`,
		next_step: first ? "Change it under Settings." : "Its log has the reason.",
	};
}

const failed = (error) => ({ text: "", note: [], end: { error } });
