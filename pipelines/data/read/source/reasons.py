"""Every reason for which a reader or the decoder rejects a record, and what it means."""

from __future__ import annotations

from types import MappingProxyType

REASONS = MappingProxyType(
    {
        # the file around the record
        "unreadable_file": "The file cannot be opened in its format; it counts with all it should hold.",
        "unreadable_rows": "The part of the parquet file that holds the row is damaged or lacks a column.",
        "truncated_file": "The file breaks off here; it counts with the records that should follow.",
        # the record itself
        "bad_json": "The line or item is not JSON.",
        "bad_encoding": "A text is not UTF-8.",
        "bad_record": "The record does not follow its layout; the detail says where.",
        "bad_turns": "The turns do not go from the user to the assistant, or a system text comes later.",
        "unknown_role": "A turn is by someone other than the system, the user or the assistant.",
        "missing_text": "A question, an answer or all turns are missing or blank; a live clip has no word.",
        "missing_image": "The text asks for more pictures than the record has, or one of them is not there.",
        "unplaced_image": "Some of the record's pictures are marked in the text, and some are not.",
        "misplaced_image": "A picture stands in a system's or an assistant's turn.",
        "remote_image": "A picture is named by a web address; readers fetch nothing from the web.",
        "missing_video": "There is no such video file under the corpus's root, or the text asks for one that "
        "the record does not name.",
        "bad_path": "A file is named by a path that leads out of the corpus.",
        # the clip
        "word_outside_clip": "A spoken word begins more than one frame before or after its clip.",
        "over_duration": "The video is longer than `max_seconds`.",
        # what decoding finds (casa_core.media.decode)
        "empty_file": "The picture or video has no bytes.",
        "not_an_image": "The bytes are no picture: a page, a drawing, a video, an archive.",
        "unsupported_format": "The picture's format (HEIC, a camera's raw file) is not decoded.",
        "truncated_image": "The picture is cut or damaged.",
        "decompression_bomb": "The picture has more pixels than may be decoded.",
        "not_a_video": "The bytes are no video with a track that can be decoded.",
        "truncated_video": "The video ends or breaks before a frame that is asked for.",
    }
)
