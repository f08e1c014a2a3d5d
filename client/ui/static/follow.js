// Keeps the end of a growing conversation in sight, unless the reader has scrolled away from it.

const NEAR_END = 80; // pixels

/**
 * Gives what to call after `place` has grown; with `true` it goes to the end wherever the reader is. Where the
 * reader is comes from scrolling alone: measured after it grew, a tall block would look like scrolling away.
 */
export function follow(place) {
	let isAtEnd = true;
	let top = 0; // where it was left
	const look = () => (isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR_END);
	place.addEventListener("scroll", look);
	return (always = false) => {
		if (place.scrollTop < top) look(); // the event that tells of it is still to come
		isAtEnd ||= always;
		if (isAtEnd) place.scrollTop = place.scrollHeight;
		top = place.scrollTop;
	};
}
