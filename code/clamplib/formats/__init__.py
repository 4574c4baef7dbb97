"""Sheet music and MIDI as texts and patches: notation, score files, MTF, patchilizer. No torch."""
