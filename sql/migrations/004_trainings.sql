-- Trainings: what was trained on what, step by step, and the machine time it took.

-- One row a training, however often it was stopped and went on.
create table trainings (
    training_id uuid primary key,
    folder varchar not null,
    base varchar not null,
    recipe varchar not null,
    method varchar not null,           -- full, lora, qlora
    version_id uuid,                   -- the dataset version trained on, where it came from this database
    selection_id uuid,                 -- and the selection
    facts varchar not null,            -- JSON: every setting, counts of rows and tokens, hashes of base and data
    recorded_at timestamp not null
);

-- One row a process that trained: a training that was stopped and went on has several.
create table training_parts (
    part_id uuid primary key,
    training_id uuid not null,
    pid integer not null,
    device varchar not null,
    cards integer not null,
    usd_per_hour decimal(38, 15),      -- of all its cards together, where known
    from_step integer not null,        -- it goes on after this step; what earlier parts did later is not in the model
    started_at timestamp not null
);

create table training_part_ends (
    part_id uuid primary key,
    outcome varchar not null,          -- done, stopped, failed
    message varchar,
    seconds double not null,
    ended_at timestamp not null
);

-- One row an optimizer step of a part.
create table training_steps (
    part_id uuid not null,
    step integer not null,             -- from 1
    epoch integer not null,            -- from 0
    loss double not null,              -- mean over the step's trained tokens
    learning_rate double not null,
    grad_norm double not null,
    examples integer not null,
    tokens bigint not null,
    tokens_per_second double not null,
    peak_bytes bigint not null,
    seconds double not null,           -- since the part began, loading included
    recorded_at timestamp not null
);
