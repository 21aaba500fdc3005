-- One row a dataset version, with the label a person uses: NAME for version 1, NAME@2 from then on.
create or replace view datasets as
select
    version_id, dataset, version,
    case when version = 1 then dataset else dataset || '@' || version end as label,
    shape, source, sha256, rows, set_aside, duplicates, facts, imported_at
from dataset_versions;

-- One row a grader: a name and a fingerprint. A name whose fingerprint changed (another file, other settings) gets @2.
create or replace view grader_labels as
select
    grader_id, name, version,
    case when version = 1 then name else name || '@' || version end as label,
    fingerprint, first_seen
from graders;

-- One row a distinct rubric text, labelled NAME, NAME@2, ... in the order in which they were first used.
create or replace view rubric_labels as
select
    rubric_id, name, version,
    case when version = 1 then name else name || '@' || version end as label,
    scale_low, scale_high, scale_step, threshold, content, first_seen
from rubrics;
