// Geometry: a spiral of `cost` spheres above a floor, as normal, depth and albedo per pixel.
// GPU time grows linearly with `cost`.

struct Pass {
    size: vec2<u32>,
    cost: u32,
    frame: u32,
}

@group(0) @binding(0) var<uniform> settings: Pass;
// x: packed normal, y: depth bits, z: packed albedo, w: 1 where something was hit.
@group(0) @binding(1) var<storage, read_write> geometry: array<vec4<u32>>;

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
    if any(gid.xy >= settings.size) { return; }
    let size = vec2<f32>(settings.size);
    let ndc = (vec2<f32>(gid.xy) + 0.5 - 0.5 * size) / (0.5 * size.y);
    let dir = normalize(vec3(ndc.x, -ndc.y - 0.36, 1.8));
    let eye = vec3(0.0, 2.2, -5.0);
    let time = f32(settings.frame % 3600u) * 0.01745329;

    var depth = 1e9;
    var normal = vec3<f32>(0.0, 1.0, 0.0);
    var albedo = vec3<f32>(0.0);
    if dir.y < 0.0 {
        depth = -eye.y / dir.y;
        let at = eye + dir * depth;
        let line = abs(fract(at.xz * 0.5) - 0.5);
        albedo = mix(vec3(0.30, 0.31, 0.36), vec3(0.12, 0.13, 0.17), smoothstep(0.44, 0.48, max(line.x, line.y)));
    }
    let n = max(settings.cost, 1u);
    for (var i = 0u; i < n; i++) {
        let turn = 2.3999632 * f32(i) + time;
        let away = 0.7 + 3.4 * sqrt((f32(i) + 0.5) / f32(n));
        let r = 0.62 * inverseSqrt(0.35 + 0.05 * f32(n));
        let lift = r + 0.5 * abs(sin(3.0 * time + 1.7 * f32(i)));
        let centre = vec3(away * cos(turn), lift, 1.2 + away * sin(turn));
        let oc = eye - centre;
        let b = dot(oc, dir);
        let h = b * b - dot(oc, oc) + r * r;
        let t = -b - sqrt(max(h, 0.0));
        let nearer = h > 0.0 && t > 0.0 && t < depth;
        depth = select(depth, t, nearer);
        normal = select(normal, (eye + dir * t - centre) / r, vec3(nearer));
        albedo = select(albedo, 0.55 + 0.45 * cos(vec3(0.0, 2.1, 4.2) + 0.9 * f32(i)), vec3(nearer));
    }
    let found = depth < 60.0;
    geometry[gid.y * settings.size.x + gid.x] = vec4(
        pack4x8snorm(vec4(normal, 0.0)),
        bitcast<u32>(depth),
        pack4x8unorm(vec4(albedo, 1.0)),
        select(0u, 1u, found),
    );
}
