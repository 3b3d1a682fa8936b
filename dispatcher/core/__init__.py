"""Pure decisions: order, shapes, load, plan. No I/O, clock, chance or log of their own: those are arguments."""
