-- Questions of any task: a question may be about something that is not a row of a dataset, and a reading may hold any
-- value.

-- One row a distinct thing that a question is about and that is not a row of a dataset: two answers side by side, or a
-- prompt that has no row yet.
create table subjects (
    subject_id uuid primary key,       -- hash of kind and content
    kind varchar not null,             -- pair, ...
    content varchar not null,          -- JSON: what the task renders
    example_id uuid                    -- the row it was made from, null where there is none
);

-- The subjects that a task asks about, in order: what dataset_rows is for tasks that ask about rows.
create table subject_lists (
    list_id uuid not null,
    position bigint not null,          -- from 0
    subject_id uuid not null
);

-- A question is about a subject: for a task that grades rows it is the row's example_id. example_id is the row that the
-- subject is or was made from, null where there is none.
alter table questions add column subject_id uuid;
update questions set subject_id = example_id;
alter table questions alter column example_id drop not null;

-- Which version of the hash made an id: `alpasift doctor --verify` makes them anew and compares.
alter table examples add column id_version utinyint default 1;
alter table questions add column id_version utinyint default 1;

-- A rubric is what any task asks by; only one that asks for a score has a scale.
alter table rubrics alter column scale_low drop not null;
alter table rubrics alter column scale_high drop not null;
alter table rubrics alter column scale_step drop not null;
alter table rubrics alter column threshold drop not null;

-- Versions of a parser count within its task. usable is null in readings of before, which were of scores: usable where
-- there is a score. value is what was read beside score, expected and explanation, as JSON.
alter table readings add column task varchar default 'grade';
alter table readings add column usable boolean;
alter table readings add column value varchar;

-- Views that have other names now.
drop view if exists asked;
drop view if exists questions_out;
