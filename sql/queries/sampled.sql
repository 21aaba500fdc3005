-- Internal.
-- Some rows of a dataset version with their grade by one grader and rubric: reason is not_graded where there is no
-- reply. usages is the usage that each answer reported, as JSON; usd is what all questions about the row have cost,
-- unresolved_usd what may still come to it. Parameters: version_id, grader_id, rubric_id, positions (a list).
with wanted as (
    select position, example_id
    from dataset_rows
    where version_id = $version_id::uuid and position in (select unnest($positions::bigint[]))
),
asking as (
    select q.example_id, q.key
    from questions q
    join setups s using (setup_id)
    where s.task = 'grade' and s.grader_id = $grader_id::uuid and s.rubric_id = $rubric_id::uuid
      and q.example_id in (select example_id from wanted)
),
reported as (
    select a.example_id, list(p.usage order by p.recorded_at, p.request_id) as usages
    from replies p
    join asking a using (key)
    where p.outcome = 'answered' and p.usage is not null
    group by a.example_id
),
owed as (
    select a.example_id, sum(l.unresolved_usd) as usd
    from ledger l
    join asking a using (key)
    group by a.example_id
)
select
    w.position, g.score,
    case when g.example_id is null then 'not_graded' else g.reason end as reason,
    coalesce(g.usd, 0)::decimal(38, 15) as usd,
    coalesce(o.usd, 0)::decimal(38, 15) as unresolved_usd,
    coalesce(s.usages, []) as usages
from wanted w
left join graded g on g.example_id = w.example_id and g.grader_id = $grader_id::uuid and g.rubric_id = $rubric_id::uuid
left join reported s on s.example_id = w.example_id
left join owed o on o.example_id = w.example_id
order by w.position;
