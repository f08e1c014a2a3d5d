/** What the server is told: without the questions that were never answered, save the last. */
export function told(messages) {
	const turns = [];
	for (const { role, content } of messages) {
		if (role === "user" || content) turns.push({ role, content });
		else turns.pop();
	}
	return turns;
}
