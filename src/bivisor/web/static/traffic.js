// What passes at a ring or a channel: the newest events of it, as long as they are looked at.

export function showTraffic(place, thing) {
  return () => {};
}
