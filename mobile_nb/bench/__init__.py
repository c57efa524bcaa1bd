"""What this machine really does: decoding on a card at real sizes, and the runtime's own cost where everything fits.

link        copies from host memory: page-locked, pageable, one expert at a time
scripted    what random weights cannot decide: routing from a recording
rivals      accelerate's offload on the same model
rows        one configuration, measured: time, bytes, bounds, overlap, waits and launches
machine     what the figures depend on
shown       rows as people read them
card        all rows of a table, within a time limit
resident    everything in slots, beside transformers' own `generate`
"""
