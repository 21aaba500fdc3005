-- Why rows of a selection's dataset were not taken: rows by score and reason, the most first. Parameters: selection_id,
-- grader, rubric.
select
    g.score,
    coalesce(g.reason, case when g.example_id is null then 'not_graded' when g.score is not null then 'not_chosen' end) as reason,
    count(*) as rows
from selections s
join dataset_rows r using (version_id)
left join graded g on g.example_id = r.example_id and g.grader = $grader and g.rubric = $rubric
where s.selection_id = $selection_id::uuid
  and not exists (select 1 from selection_rows k where k.selection_id = s.selection_id and k.position = r.position)
group by all
order by rows desc, score desc, reason;
