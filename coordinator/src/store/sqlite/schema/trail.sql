-- What was in the trail of a session stands where it belongs.
UPDATE sessions SET doc = json_remove(json_set(doc,
    '$.fallbacks', json(coalesce(doc -> '$.trail.fallbacks', '[]')),
    '$.resumes', coalesce(doc ->> '$.trail.resumes', 'none'),
    '$.calls', json_object(
        'answered', coalesce(doc ->> '$.trail.calls', 0),
        'before_attempt', coalesce(doc ->> '$.trail.calls_before', 0),
        'repeated', doc ->> '$.call_retries'),
    '$.checkpoints', json_object(
        'taken', coalesce(doc ->> '$.trail.taken', 0),
        'head', json(coalesce(doc -> '$.trail.head', 'null')),
        'resumptions', json(coalesce(doc -> '$.trail.resumptions', '[]'))),
    '$.setback', json(coalesce(doc -> '$.trail.setback', 'null')),
    '$.reworks', coalesce(doc ->> '$.trail.reworks', 0),
    '$.rework', json(coalesce(doc -> '$.trail.rework', 'null'))), '$.trail', '$.call_retries');
