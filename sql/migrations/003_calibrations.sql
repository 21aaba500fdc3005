-- What a cheap grader's scores mean in terms of a reference.

-- One row a calibration: a grader and rubric fitted to a reference on a sample of one dataset version. The newest row of a
-- grader, rubric and scored column counts; another model or a changed rubric has other ids, and so no calibration.
create table calibrations (
    calibration_id uuid primary key,
    grader_id uuid not null,
    rubric_id uuid not null,
    scored varchar not null,           -- the column that was fitted: score or expected
    reference_grader_id uuid not null,
    reference_rubric_id uuid not null,
    version_id uuid not null,          -- the dataset version that the sample was drawn from
    reference_threshold decimal(9, 3) not null,
    verdict varchar not null,          -- calibrated, or no_claim: the sample shows no relation
    facts varchar not null,            -- JSON: sample, weights, fit, thresholds with their intervals, held-out error
    recorded_at timestamp not null
);
