-- One row per selection, with its label on the command line (NAME for version 1, NAME@2 for the next) and its condition.
-- kept_share is relative to the dataset version; equal fingerprints mean that the same rows were
-- kept.
create or replace view selection_list as
select
    s.selection_id, s.name, s.version,
    case when s.version = 1 then s.name else s.name || '@' || s.version end as label,
    d.label as dataset,
    s.rows, d.rows as pool, s.rows / d.rows as kept_share,
    s.manifest::json ->> '$.condition' as condition,
    s.manifest::json ->> '$.grader.label' as grader,
    s.manifest::json ->> '$.rubric.label' as rubric,
    s.manifest::json ->> '$.fingerprint' as fingerprint,
    s.created_at, s.version_id, s.manifest
from selections s
join datasets d using (version_id);
