-- One row per selected row, grader and rubric: the row's text with score, reason and explanation.
-- by_selector is true for the grader and rubric that the selection was made with; an ungraded row appears once, without a grader.
-- selection is the label: NAME for version 1, NAME@2 for the next.
create or replace view selected_rows as
select
    l.label as selection, l.dataset, s.position, r.category, g.grader, g.rubric, g.score, g.expected_score, g.reason,
    g.explanation,
    coalesce(g.grader = l.grader and g.rubric = l.rubric, false) as by_selector,
    e.system, e.turns, e.instruction, e.input, e.output, r.example_id, l.selection_id, l.version_id
from selection_list l
join selection_rows s using (selection_id)
join dataset_rows r on r.version_id = l.version_id and r.position = s.position
join examples e using (example_id)
left join graded g on g.example_id = r.example_id;
