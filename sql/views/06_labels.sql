-- Internal.
-- One row per dataset version, including those that audits made (audit:NAME-ROWS-SEED), with its label on the command
-- line: NAME for version 1, NAME@2 for the next.
create or replace view dataset_labels as
select
    version_id, dataset, version,
    case when version = 1 then dataset else dataset || '@' || version end as label,
    shape as row_format, source, sha256, rows, set_aside as skipped, duplicates, facts, imported_at,
    starts_with(dataset, 'audit:') as of_audit
from dataset_versions;

-- One row per dataset version, with its label on the command line: NAME for version 1, NAME@2 for the next. The rows of
-- audits are left out: see audit_list and audited_pairs.
create or replace view datasets as
select * exclude (of_audit) from dataset_labels where not of_audit;

-- One row per grader: a name and a fingerprint. A name whose fingerprint changed (another file, other settings) gets @2.
create or replace view grader_labels as
select
    grader_id, name, version,
    case when version = 1 then name else name || '@' || version end as label,
    fingerprint, first_seen
from graders;

-- One row per distinct rubric text, labelled NAME, NAME@2, ... in the order in which they were first used.
-- Hidden ones (`alpasift rubric hide`) are not listed by commands.
create or replace view rubric_labels as
select
    rubric_id, name, version,
    case when version = 1 then name else name || '@' || version end as label,
    scale_low, scale_high, scale_step, threshold, content, first_seen, coalesce(h.hidden, false) as hidden
from rubrics
left join (
    select rubric_id, arg_max(hidden, hidden_rubrics.rowid) as hidden from hidden_rubrics group by rubric_id
) h using (rubric_id);
