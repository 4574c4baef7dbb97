"""Sheet music and MIDI as texts and patches: notation, score files, MTF, patchilizer. Nothing here imports torch."""
