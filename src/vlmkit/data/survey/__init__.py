"""What a user should know of counted rows before a run: repeats, boxes, lengths, media that do not decode."""
