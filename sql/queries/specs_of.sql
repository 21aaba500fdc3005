-- Internal.
-- Where the files of a local grader were in its runs, the newest first: specs that open it. Parameters: grader,
-- grader_id; null for any of that name.
select distinct on (spec) r.facts::json ->> '$.backend.spec' as spec, r.started_at
from runs r
join setups s using (setup_id)
join grader_labels g using (grader_id)
where g.name = $grader and ($grader_id is null or g.grader_id = $grader_id::uuid)
  and r.facts::json ->> '$.backend.spec' is not null
order by r.started_at desc;
