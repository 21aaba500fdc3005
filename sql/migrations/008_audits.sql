-- Audits of graders: rows of a dataset and what was made of them, whose order is known without a label.

-- One row per audit: which rows were taken, by which seed. What was made is a dataset version of its own, named
-- audit:DATASET-ROWS-SEED; lists of datasets leave it out.
create table audits (
    audit_id uuid primary key,         -- hash of the rest but facts and time; the version_id of what was made
    source_version_id uuid not null,   -- the dataset version whose rows were taken
    rows bigint not null,              -- how many rows were to be taken
    seed bigint not null,
    highest varchar not null,          -- the rubric's highest answer, which an injected line claims
    facts varchar not null,            -- JSON: rows taken, left out and passed over, version of the damage
    recorded_at timestamp not null
);

-- One row per pair: a row as it is, and as it was changed.
create table audit_pairs (
    audit_id uuid not null,
    position bigint not null,          -- of the row as it is, in the dataset version of the audit
    kind varchar not null,             -- other_output, cut_in_half, ...
    expects varchar not null,          -- lower: the changed row must score lower; not_higher: it must not score higher
    example_id uuid not null,          -- the row as it is
    changed_id uuid not null,          -- example_id of the row as it was changed
    asked_twice boolean not null       -- whether the question about the changed row is asked a second time
);

-- One row per finished audit of a grader by a rubric. The newest row of a grader and rubric counts.
create table audit_verdicts (
    verdict_id uuid primary key,
    audit_id uuid not null,
    setup_id uuid not null,
    grader_id uuid not null,
    rubric_id uuid not null,
    verdict varchar not null,          -- in one line
    short varchar not null,            -- the same for a table's cell
    facts varchar not null,            -- JSON: figures by kind, with their intervals
    recorded_at timestamp not null
);
