"""What a model can do, measured.

    plan, extract, features, run      sets -> features, stored once by Ray Data -> each set's result
    analyses, measure, metrics ...    the measurements, plain and without Ray
    overlap, overlap_*, duplicates    what training has seen of a set
    report, sections, figures,
    compare, gate                     what is made of results
    after_training                    the short table at the end of a run

Ray appears in `extract`, `run`, `overlap_search` and `after_training` alone.
"""
