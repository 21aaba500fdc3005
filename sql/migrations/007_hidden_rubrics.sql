-- Which versions of a rubric are not listed: the newest row of a rubric counts. Nothing that was graded by it changes.
create table hidden_rubrics (
    rubric_id uuid not null,
    hidden boolean not null,
    recorded_at timestamp not null
);
