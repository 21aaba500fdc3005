-- The store: tables to which we only add. At most one primary key a table and no other index; what is current is a
-- view. Ids are 128-bit hashes kept as uuid (16 bytes). Money is decimal(38, 15) US dollars. Times are UTC.

-- Facts about this database itself: ledger (its identity), created_at, machine.
create table meta (
    key varchar primary key,
    value varchar not null
);

-- One row a distinct content: the hash of system, turns, instruction, input and output.
create table examples (
    example_id uuid primary key,
    system varchar not null,
    turns varchar not null,            -- JSON list of [role, content]; '' when there are none
    instruction varchar not null,
    input varchar not null,
    output varchar not null
);

-- One row a distinct file content imported under a name. Its label is NAME for version 1 and NAME@2 from then on.
create table dataset_versions (
    version_id uuid primary key,       -- hash of name, content and mapping
    dataset varchar not null,
    version integer not null,
    shape varchar not null,            -- alpaca, dolly, sharegpt, messages or mapped
    source varchar not null,           -- the file's name, without its folder
    sha256 varchar not null,
    rows bigint not null,              -- usable rows, duplicates included
    set_aside bigint not null,
    duplicates bigint not null,        -- usable rows whose content stands earlier in the same version
    facts varchar not null,            -- JSON: mapping, file format, what a re-export needs
    imported_at timestamp not null
);

-- One row a usable line of a file, in its order. `other` holds what the row had beside its content, as JSON.
create table dataset_rows (
    version_id uuid not null,
    position bigint not null,          -- from 0, over usable and set-aside rows alike
    example_id uuid not null,
    category varchar,
    other varchar not null
);

-- Rows of a file that could not be used, with the reason; nothing is dropped silently.
create table set_aside (
    version_id uuid not null,
    position bigint not null,
    line bigint,                       -- 1-based line of the file, where lines mean something
    reason varchar not null,
    row varchar not null               -- the row as it stood, cut at 10,000 characters
);

-- Who answered: a backend and all that can change its answers.
create table graders (
    grader_id uuid primary key,        -- hash of name and fingerprint
    name varchar not null,
    version integer not null,
    fingerprint varchar not null,      -- JSON
    first_seen timestamp not null
);

-- By which rubric: one row a distinct content.
create table rubrics (
    rubric_id uuid primary key,        -- hash of everything in the rubric
    name varchar not null,
    version integer not null,
    scale_low decimal(9, 3) not null,
    scale_high decimal(9, 3) not null,
    scale_step decimal(9, 3) not null,
    threshold decimal(9, 3) not null,
    content varchar not null,          -- JSON
    first_seen timestamp not null
);

-- How it is asked: grader, rubric, task and decoding. Equal settings are one row.
create table setups (
    setup_id uuid primary key,
    task varchar not null,
    grader_id uuid not null,
    rubric_id uuid not null,
    decoding varchar not null          -- JSON: contract, max_tokens, temperature, renderer
);

-- One row a question asked: which example it is about. Equal questions are one row.
create table questions (
    key uuid primary key,
    setup_id uuid not null,
    example_id uuid not null,
    sample integer not null
);

-- One row a command that graded or imported, when it began; how it ended is in run_ends.
create table runs (
    run_id uuid primary key,
    command varchar not null,
    setup_id uuid,
    version_id uuid,
    pid integer not null,
    facts varchar not null,            -- JSON: library versions, limit, what was planned
    started_at timestamp not null
);

create table run_ends (
    run_id uuid primary key,
    outcome varchar not null,          -- done, partial, interrupted, failed
    facts varchar not null,            -- JSON: counts and the message of an error
    seconds double not null,
    usd_per_hour decimal(38, 15),      -- of this machine, where known
    ended_at timestamp not null
);

-- One row a thing sent, or about to be: a batch file, a call, a block of rows for a local model.
create table attempts (
    attempt_id uuid primary key,
    run_id uuid not null,
    backend varchar not null,
    grader_id uuid not null,
    lines bigint not null,
    ceiling_usd decimal(38, 15) not null,
    price varchar,                     -- JSON: the price table used, frozen
    facts varchar not null,            -- JSON
    opened_at timestamp not null
);

-- One row a question of an attempt, with the most it may cost.
create table attempt_lines (
    attempt_id uuid not null,
    key uuid not null,
    ceiling_usd decimal(38, 15) not null
);

-- One row a step of an attempt: sent, uploaded, ..., closed. Steps are committed before the next is taken.
create table attempt_steps (
    attempt_id uuid not null,
    step integer not null,             -- from 1; the order of steps, whatever the clock says
    state varchar not null,
    facts varchar not null,            -- JSON
    recorded_at timestamp not null
);

-- One row a reply: the expensive fact. Reading the same results again changes nothing.
create table replies (
    attempt_id uuid not null,
    key uuid not null,
    request_id varchar not null,
    outcome varchar not null,          -- answered, rejected_free, unknown
    text varchar,
    finish_reason varchar,
    model varchar,
    usage varchar,                     -- JSON, as it came
    logprobs varchar,                  -- JSON
    error varchar,
    raw varchar,
    recorded_at timestamp not null,
    primary key (attempt_id, key, request_id)
);

-- One row a reading of a reply: a better reader adds rows and asks nobody again.
create table readings (
    attempt_id uuid not null,
    key uuid not null,
    request_id varchar not null,
    reader varchar not null,           -- version of the parser
    score decimal(9, 3),
    expected double,
    reason varchar,                    -- why there is no score: unreadable, out_of_range, cut_off, refused, ...
    explanation varchar,
    recorded_at timestamp not null,
    primary key (attempt_id, key, request_id, reader)
);

-- The ledger: one row a movement of money, as signed changes of three accounts. Never changed, only reversed.
create table ledger (
    entry_id uuid primary key,
    kind varchar not null,             -- reserve, charge, release, unresolved
    run_id uuid,
    attempt_id uuid,
    key uuid,
    request_id varchar,
    reserved_usd decimal(38, 15) not null,
    spent_usd decimal(38, 15) not null,
    unresolved_usd decimal(38, 15) not null,
    note varchar,
    recorded_at timestamp not null
);

-- The cap of this database, each time it was set. The newest row counts.
create table budgets (
    entry_id bigint primary key,
    budget_usd decimal(38, 15) not null,
    recorded_at timestamp not null
);

-- What must stop all sending until a person has looked: a charge above its ceiling, work nobody asked for.
create table alarms (
    alarm_id bigint primary key,
    kind varchar not null,             -- ceiling_broken, unasked_work, acknowledged
    attempt_id uuid,
    usd decimal(38, 15),
    note varchar not null,
    recorded_at timestamp not null
);

-- One row a named subset of a dataset version, with all that made it.
create table selections (
    selection_id uuid primary key,
    name varchar not null,
    version integer not null,
    version_id uuid not null,
    rows bigint not null,
    manifest varchar not null,         -- JSON
    created_at timestamp not null
);

create table selection_rows (
    selection_id uuid not null,
    position bigint not null           -- of dataset_rows
);
