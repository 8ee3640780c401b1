"""Gradient alignment: does a teacher push the student where success lies?

At a node (a prompt and a student prefix) the ideal gradient g is what raises the
chance of success, the move D is what an objective does to the student's logits;
both are vectors over next tokens. Success after each next token is known from
targeted rollouts alone, so everything here is an estimate with an error.

    moves      g, D and the outcomes they are compared on
    node       from counts of right rollouts to unbiased numbers at a node
    design     which nodes, which children, how many rollouts, at what cost
    pooling    numbers of many nodes into one answer with an interval
    published  the estimator of 2605.10889, for comparison alone

Arrays are float64 with children last; a leading axis is a node, a replicate or
both. Definitions, proofs and experiments: docs/alignment.md.
"""
