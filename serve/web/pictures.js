// Pictures made ready to send: upright, no larger than the endpoint takes, small ones as they are.

import { jpegOf, snapshot } from "/web/frames.js";

const LONGEST_SIDE = 1568; // more than any model here looks at; a page of text stays legible
const SENT_AS_THEY_ARE = new Set(["image/png", "image/jpeg", "image/webp"]);
const SHRINK = 0.75;

/**
 * @param {Blob} blob a picture file
 * @param {string} name
 * @param {number} bytes most that may be sent of it
 * @param {number} pixels most that the endpoint takes
 * @returns {Promise<{url: string, name: string, width: number, height: number, shrunk: boolean}>} `url` is a data URI
 * @throws {Error} for what is no picture
 */
export async function prepared(blob, name, bytes, pixels) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob); // turned as its EXIF says
  } catch {
    throw new Error(`${name} is no picture that this browser can show: convert it to JPEG or PNG.`);
  }
  try {
    const { width, height } = bitmap;
    const longest = Math.min(LONGEST_SIDE, Math.floor(Math.max(width, height) * Math.sqrt(pixels / (width * height))));
    const fits = Math.max(width, height) <= longest && blob.size <= bytes && SENT_AS_THEY_ARE.has(blob.type);
    const sent = fits ? blob : await shrunk(bitmap, longest, bytes);
    return { url: await dataUri(sent), name, width, height, shrunk: !fits };
  } finally {
    bitmap.close();
  }
}

async function shrunk(bitmap, longest, bytes) {
  for (let side = longest; ; side = Math.floor(side * SHRINK)) {
    const jpeg = await jpegOf(snapshot(bitmap, side));
    if (jpeg.size <= bytes || side < 64) return jpeg;
  }
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
