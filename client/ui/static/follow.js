// Keeps the end of a growing conversation in sight, unless the reader has scrolled away from it.

const NEAR_END = 80; // pixels

/**
 * Gives what to call after `place` has grown; with `true` it goes to the end wherever the reader is. Where the
 * reader is comes from scrolling alone: measured after it grew, a tall block would look like scrolling away.
 */
export function follow(place) {
	let isAtEnd = true;
	place.addEventListener("scroll", () => {
		isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR_END;
	});
	return (always = false) => {
		isAtEnd ||= always;
		if (isAtEnd) place.scrollTop = place.scrollHeight;
	};
}
